import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.main import main
from cluster.registry.registry import open_registry
from cluster.registry.table import table
from dreamer4.files import read_json

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("interrupts")
HOUR = 3600.0
IDLE = {"run": "/r", "registry": "directory", "holder": None, "age_s": None}


@pytest.fixture
def two_runs(any_run):
    """One that is written, and one that was never written, so that only its directory knows of it."""
    for name in ("busy", "new"):
        (any_run / name).mkdir()
        (any_run / name / "config.json").write_text("{}")
    registry = open_registry(any_run / "busy")
    told = {"stage": "policy", "state": "running", "step": 28, "steps": 220, "weights_version": 27}
    registry.publish(registry.acquire("learner", HOUR), **told, frames_per_s=1234.56, workers=3)
    return any_run


def cells(line):
    return [cell.strip() for cell in line.split("  ") if cell]


def test_table_shows_how_far_a_run_is_and_who_writes_it(two_runs, capsys):
    assert main(["runs", "--root", str(two_runs)]) == 0
    head, busy, *others = capsys.readouterr().out.splitlines()
    assert cells(head) == ["run", "stage", "state", "step", "weights", "frames/s", "workers", "holder", "age"]
    *known, age = cells(busy)
    assert known == [str(two_runs / "busy"), "policy", "running", "28/220", "27", "1235", "3", "learner"]
    assert age.endswith(" s") or age.endswith(" min")
    if "DREAMER4_REGISTRY" in os.environ:
        assert others == []
    else:
        assert cells(others[0]) == [str(two_runs / "new"), *["–"] * 8]


def test_everything_known_is_written_as_json(two_runs, capsys):
    assert main(["runs", "--root", str(two_runs), "--json", str(two_runs / "out" / "runs.json")]) == 0
    busy = read_json(two_runs / "out" / "runs.json")[0]
    told = open_registry(two_runs / "busy").read()
    assert {**busy, "age_s": 0, "held_s": 0} == {**told, "age_s": 0, "held_s": 0}
    assert capsys.readouterr().out.startswith("run ")


def test_run_that_said_it_runs_and_that_nobody_writes_is_lost(any_run, capsys):
    """As a killed process leaves it; one that was stopped has said so."""
    (any_run / "config.json").write_text("{}")
    registry = open_registry(any_run)
    for told, shown in (("running", "lost"), ("stopped", "stopped"), ("done", "done")):
        lease = registry.acquire("trainer", HOUR)
        registry.publish(lease, stage="dynamics", state=told)
        held = table([registry.read()]).splitlines()[1]
        assert cells(held)[2] == told, "while it is written it is as it says"
        registry.release(lease)
        assert main(["runs", "--root", str(any_run.parent)]) == 0
        assert cells(capsys.readouterr().out.splitlines()[1])[1:3] == ["dynamics", shown]


def test_columns_stand_below_each_other():
    lines = table([IDLE, {**IDLE, "run": "/much/longer", "stage": "policy", "step": 3, "age_s": 1.0}]).splitlines()
    for name in ("stage", "step", "age"):
        column = lines[0].index(f" {name} " if name != "age" else " age") + 1
        assert all(line[column - 1] == " " and line[column] != " " for line in lines[1:])


@pytest.mark.parametrize(
    ("seconds", "age"),
    [(-1, "0 s"), (0.9, "0 s"), (59, "59 s"), (60, "1 min"), (7199, "1 h"), (86399, "23 h"), (1e6, "11 d")],
)
def test_age_is_in_the_largest_unit(seconds, age):
    assert table([{**IDLE, "age_s": seconds}]).splitlines()[1].endswith(f"  {age}")


def test_unreadable_run_is_shown_with_its_error(two_runs, capsys, monkeypatch):
    monkeypatch.delenv("DREAMER4_REGISTRY", raising=False)
    (two_runs / "new" / ".lease").mkdir()
    (two_runs / "new" / ".lease" / "lease.json").write_text("{")
    assert main(["runs", "--root", str(two_runs)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"{two_runs / 'new'}  '") and "is damaged: make sure that nobody writes" in last


def test_no_runs_is_said(directory_run, capsys):
    assert main(["runs", "--root", str(directory_run)]) == 0
    assert capsys.readouterr().out == "no runs\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--root", "nowhere"], "there is no folder 'nowhere'"), (["seed=1"], "`runs` takes no settings, got 'seed=1'")],
)
def test_mistakes_are_one_sentence(directory_run, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(directory_run)
    assert main(["runs", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_unreachable_redis_is_one_sentence_without_the_password(directory_run, monkeypatch, capsys):
    monkeypatch.setenv("DREAMER4_REGISTRY", "redis://:hunter2@127.0.0.1:1/0")
    assert main(["runs"]) == 2
    err = capsys.readouterr().err
    assert "redis at 127.0.0.1:1 doesn't serve" in err and err.count("\n") == 1 and "hunter2" not in err


def test_listing_runs_loads_nothing_heavy(directory_run):
    """So that it can be called again and again."""
    script = (
        "import sys\nfrom cluster.main import main\nassert main(sys.argv[1:]) == 0\n"
        "print('loaded:', *sorted({'torch', 'ray', 'numpy', 'gymnasium'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", script, "runs", "--root", str(directory_run)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["no runs", "loaded:"]
