"""The real thing: `dreamer4 quickstart --smoke` as a user runs it; in the drill, killed and started again."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from states import assert_equal

from cluster.main import main
from cluster.run import Run
from cluster.stages import STAGES
from cluster.telemetry import read_metrics
from cluster.utilisation import TIMED

ROOT = Path(__file__).parents[2]
TIMES = ("time", *TIMED)  # what two equal runs differ in


def start(run: Path) -> subprocess.Popen:
    """A quickstart in a session of its own, with a log beside the run; nothing of a surrounding cluster leaks in."""
    command = [sys.executable, "-m", "cluster.main", "quickstart", "--smoke", "--run", str(run)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with open(run.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def finish(run: Path) -> None:
    process = start(run)
    try:
        status = process.wait(timeout=400)
    finally:
        end(process)
    assert status == 0, run.with_suffix(".log").read_text()[-3000:]


def family(process: subprocess.Popen) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def end(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    """Kills a quickstart, and then whatever Ray has left behind of it."""
    children = family(process)
    if process.poll() is None:
        process.send_signal(number)
        process.wait(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=20)
    for child in alive:
        child.kill()
    psutil.wait_procs(alive, timeout=20)


def interrupt(run: Path, when: Callable[[], bool], number: int) -> None:
    """Starts a quickstart and sends it a signal as soon as `when` is true."""
    process, deadline = start(run), time.monotonic() + 300
    try:
        while not when() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        assert when() and process.poll() is None, run.with_suffix(".log").read_text()[-3000:]
    finally:
        end(process, number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(run)
    return run


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_smoke_does_every_stage_and_writes_a_report(whole: Path) -> None:
    run = Run.attach(whole)
    assert all(run.finished(stage) is not None for stage in STAGES)
    page = (whole / "report" / "report.html").read_text()
    assert "http://" not in page and "https://" not in page
    for policy in ("demonstrator", "random", "bc", "filtered_bc", "pmpo"):
        record = json.loads((whole / "evaluation" / f"{policy}.json").read_text())
        assert record["episodes"] == run.config.evaluation.episodes == len(record["returns"])
        assert f"{record['mean_return']:.3f}" in page


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_diagnosis_measures_every_part_of_the_run(whole: Path) -> None:
    assert main(["diagnose", "--run", str(whole), "--windows", "24"]) == 0
    found = json.loads((whole / "diagnosis" / "diagnosis.json").read_text())
    assert found["verdict"].startswith("The ceiling is here: the tokenizer"), "with hardly any training"
    assert 0 <= found["distinct"]["random"]["1"]["pose"] < 0.9
    assert set(found["policies"]) == {"bc", "pmpo", "filtered_bc"}
    values = found["policies"]["pmpo"]["values"]
    assert math.isfinite(values["expected"]["mean"]) and math.isfinite(values["dreamt"]["mean"])
    assert "values" not in found["policies"]["bc"], "no value head was trained beside it"
    steps = Run.attach(whole).config.policy.steps
    assert [row["update"] for row in found["learning"]] == list(range(1, steps + 1))
    assert all(math.isfinite(row["entropy"]) and row["staleness"] >= 0 for row in found["learning"])
    page = (whole / "diagnosis" / "diagnosis.html").read_text()
    assert "How stage 4 went" in page and f"{values['expected']['mean']:.3f}" in page


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_killed_and_interrupted_run_ends_with_the_same_numbers(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"

    def reached(stage: str) -> bool:
        return bool(read_metrics(path / "metrics.jsonl", stage))

    interrupt(path, lambda: reached("dynamics"), signal.SIGKILL)
    run = Run.attach(path)
    assert run.finished("encode") is not None and run.finished("dynamics") is None  # it was hit in mid-stage
    interrupt(path, lambda: reached("agent"), signal.SIGTERM)
    assert path.with_suffix(".log").read_text().endswith("dreamer4: interrupted; the same command goes on\n")
    interrupt(path, lambda: reached("policy"), signal.SIGINT)
    assert run.finished("agent") is not None and run.finished("evaluate") is None
    finish(path)
    other = Run.attach(whole)
    for stage in ("tokenizer", "dynamics", "agent", "policy", "filtered_bc"):
        mine, theirs = run.checkpoints(stage).load(), other.checkpoints(stage).load()
        assert mine.step == theirs.step
        assert_equal(mine.weights, theirs.weights)
        assert metrics(path, stage) == metrics(whole, stage)
    for file in ("evaluation/bc.json", "evaluation/pmpo.json", "inspection/inspection.json"):
        assert json.loads((path / file).read_text()) == json.loads((whole / file).read_text())


def metrics(run: Path, stage: str) -> list[dict]:
    rows = read_metrics(run / "metrics.jsonl", stage)
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.usefixtures("ray_up", "interrupts")
def test_finished_run_is_not_done_again(whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes(), (whole / "evaluation" / "pmpo.json").stat().st_mtime_ns
    assert main(["quickstart", "--smoke", "--run", str(whole)]) == 0
    assert before == ((whole / "metrics.jsonl").read_bytes(), (whole / "evaluation" / "pmpo.json").stat().st_mtime_ns)


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.usefixtures("ray_up", "interrupts")
def test_a_look_at_a_policy_in_training_does_not_become_its_result(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """And fewer episodes don't take the place of more."""
    path = shutil.copytree(whole, tmp_path / "run")
    evaluate = ["evaluate", "--run", str(path), "--policy", "pmpo", "--episodes"]
    assert main([*evaluate, "2"]) == 0
    assert (path / "evaluation" / "pmpo.json").read_bytes() == (whole / "evaluation" / "pmpo.json").read_bytes()
    (path / "finished" / "policy.json").unlink()
    (path / "evaluation" / "pmpo.json").unlink()
    assert main([*evaluate, "2"]) == 0
    assert "'pmpo' is still in training" in capsys.readouterr().out
    assert not (path / "evaluation" / "pmpo.json").exists()


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.usefixtures("interrupts")
def test_run_refuses_another_config(whole: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["quickstart", "--smoke", "--run", str(whole), "seed=1"]) == 2
    assert "seed is 0 there and 1 here" in capsys.readouterr().err
