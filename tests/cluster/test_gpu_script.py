"""`benchmarks/gpu.sh`: the call for a machine with a GPU, as far as one without can try it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.main import build_parser

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
SAYS_ITS_ARGUMENTS = '#!/bin/sh\necho "$0 $@" >> "$LOG"\ncase "$*" in *--compile*) exit 3;; esac\n'


def call(folder: Path, path: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **variables, "PATH": f"{path}:{os.environ['PATH']}"}
    return subprocess.run(["sh", SCRIPT, folder / "out"], env=environment, capture_output=True, text=True, timeout=580)


def test_a_gpu_gets_commands_that_there_are_and_a_failed_one_leaves_the_others_alone(tmp_path: Path):
    """With programs that only say how they were called."""
    for name in ("dreamer4", "nvidia-smi", "timeout"):
        (tmp_path / name).write_text(SAYS_ITS_ARGUMENTS + ('shift; "$@"\n' if name == "timeout" else ""))
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    variables = {"LOG": str(log), "DREAMER4_GPU_BENCH_DEVICE": "cuda"}
    done = call(tmp_path, str(tmp_path), **variables)
    lines = [line.split() for line in log.read_text().splitlines()]
    limits = [int(words[1]) for words in lines if words[0].endswith("timeout")]
    assert 0 < sum(limits) < 8 * 60
    commands = [words[2:] for words in lines if words[0].endswith("timeout")]
    options = [build_parser().parse_args(words[1:]) for words in commands]
    assert {one.what for one in options} == {"imagination", "training"}
    assert all(one.device == "cuda" and one.json.parent == tmp_path / "out" for one in options)
    training = [(one.preset, one.checkpointing, one.compile) for one in options if one.what == "training"]
    assert training == [("minecraft", True, False), ("minecraft", True, True)]
    assert (
        done.returncode == 1 and (tmp_path / "out" / "failed.txt").read_text() == "training-compiled: exit status 3\n"
    )
    assert options[-1].engine == "compiled", "the one after it was called"


@pytest.mark.slow
def test_it_measures_and_writes_json(tmp_path: Path):
    """At the laptop's size on the CPU."""
    done = call(tmp_path, str(Path(sys.executable).parent), DREAMER4_GPU_BENCH_DEVICE="cpu", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    records = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "out").glob("*.json")}
    measured = {name: record for name, record in records.items() if not name.endswith(".trace")}
    assert set(measured) == {"eager", "training", "batched"}
    assert all(record["mfu"] > 0 and record["frames_per_s"] > 0 for record in measured.values())
    assert measured["training"]["activation_checkpointing"]
    assert re.search(r"model FLOPs utilisation +[\d.]+ %", done.stdout)
