"""A few of the damages of `benchmarks.fuzz_data`, and whether it would notice what must not happen."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fuzz_data
from benchmarks.fuzz_targets import TARGETS

ROOT = Path(__file__).resolve().parents[3]
CASES = 140


def test_damaged_files_end_in_an_error_a_report_or_nothing(tmp_path):
    command = [sys.executable, "-m", "benchmarks.fuzz_data", "--cases", str(CASES), "--first", "1000000"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "found.json")], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    found = json.loads((tmp_path / "found.json").read_text())
    assert done.returncode == 0, found["failures"]
    assert sum(found["counts"].values()) == CASES
    noticed = sum(count for name, count in found["counts"].items() if name.endswith(("error", "reported")))
    assert noticed > CASES / 2


def test_crashes_hangs_and_hunger_are_told_apart(monkeypatch):
    monkeypatch.setattr(fuzz_data, "SECONDS", 1)

    def act(number: int) -> tuple[str, str, str]:
        if number == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 3:
            time.sleep(30)
        return "same", "", ""

    outcomes = {number: result[0] for number, result in fuzz_data.outcomes(act, range(5))}
    assert outcomes == {0: "same", 1: "crash", 2: "same", 3: "hang", 4: "same"}


@pytest.mark.parametrize(("kind", "wanted"), [("hungry", "memory"), ("surprised", "other error"), ("fine", "same")])
def test_other_ends_are_told_apart(tmp_path, kind, wanted):
    def read(folder: Path, _: object) -> tuple[str, object]:
        if kind == "hungry":
            np.zeros(1 << 45, np.uint8)
        if kind == "surprised":
            raise IndexError("surprise")
        return "same", None

    target = fuzz_data.Target(lambda folder: None, read)
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "a").write_bytes(b"abc")
    assert fuzz_data.case(target, tmp_path / "whole", None, tmp_path / "broken", 0, 0)[0] == wanted


def test_other_data_that_nobody_reports_is_silent(tmp_path):
    target = TARGETS["dataset raw"]
    target.make(tmp_path / "data")
    outcome, found = target.read(tmp_path / "data", None)
    assert outcome == "same" and target.read(tmp_path / "data", found)[0] == "same"
    assert target.read(tmp_path / "data", [*found[:-1], "another"])[0].startswith("silent")
