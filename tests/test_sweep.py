"""Sweeps of whole runs: what each is called and set to, what becomes of failures, and the tables at the end."""

import os
import sys
import time
from pathlib import Path

import pytest
from handmade import whole_run

from benchmarks import sweep
from benchmarks.sweep import cells, keep
from cluster.config import configure
from cluster.presets import preset
from cluster.reports.compare import compare
from dreamer4.files import read_json, write_json


def test_every_budget_meets_every_combination():
    varied = [["data.frames", "100", "200"], ["data.demonstrator.careless_epsilon", "0.2"]]
    found = cells("doorkey", [1, 0.5], varied, ["controls=[]"])
    assert [cell.name for cell in found] == [
        f"budget{budget}-frames{frames}-careless_epsilon0.2" for budget in ("1", "0.5") for frames in (100, 200)
    ]
    assert found[0].path(Path("runs"), 3) == Path("runs/budget1-frames100-careless_epsilon0.2-seed3")
    whole, half = (configure(preset("doorkey"), found[i].settings) for i in (1, 3))
    assert whole.data.frames == half.data.frames == 200 and whole.data.demonstrator.careless_epsilon == 0.2
    assert whole.controls == () and whole.tokenizer_training.steps == 2 * half.tokenizer_training.steps
    for section in sweep.TRAININGS:
        steps = getattr(preset("doorkey"), section).steps
        assert getattr(whole, section).steps == steps and getattr(half, section).steps == steps // 2
    assert cells("doorkey", [1], [], [])[0].path(Path("runs"), 0) == Path("runs/seed0")


def test_a_run_that_fails_is_named_with_its_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sweep", str(tmp_path / "runs"), "--preset", "smoke", "dynamics.widht=3"])
    assert sweep.main() == 1
    log = tmp_path / "runs" / "seed0.log"
    assert f"failed: see {log}" in capsys.readouterr().err and "did you mean 'dynamics.width'" in log.read_text()


@pytest.mark.parametrize(
    "values, words",
    [((), "wants a key and at least one value"), (("1500", "seed=3"), "--vary got 'seed=3' as a value")],
)
def test_what_cannot_be_varied_is_refused(tmp_path, monkeypatch, capsys, values, words):
    monkeypatch.setattr(sys, "argv", ["sweep", str(tmp_path), "--vary", "data.frames", *values])
    with pytest.raises(SystemExit):
        sweep.main()
    assert words in capsys.readouterr().err


def test_a_diagnosis_is_made_again_when_another_policy_was_played(tmp_path):
    file = tmp_path / "diagnosis" / "diagnosis.json"
    assert not sweep.diagnosed(tmp_path)
    for folder in ("diagnosis", "evaluation"):
        (tmp_path / folder).mkdir()
    write_json(tmp_path / "evaluation" / "bc.json", {})
    write_json(file, {})
    os.utime(tmp_path / "evaluation" / "bc.json", (1000, 1000))
    os.utime(file, (1001, 1001))
    assert sweep.diagnosed(tmp_path)
    write_json(tmp_path / "evaluation" / "iql.json", {})
    assert not sweep.diagnosed(tmp_path)


def test_others_go_on_when_one_fails():
    done: list[int] = []

    def fail() -> None:
        raise RuntimeError("number 1 failed")

    assert sweep.play_all([lambda: done.append(0), fail, lambda: done.append(2)], 1) == ["number 1 failed"]
    assert done == [0, 2]


def test_an_interrupt_begins_no_other():
    done: list[float] = []

    def interrupted() -> None:
        raise KeyboardInterrupt

    def slow() -> None:  # a second in all, in which the interrupt is seen
        time.sleep(0.02)
        done.append(time.monotonic())

    with pytest.raises(KeyboardInterrupt):
        sweep.play_all([interrupted, *[slow] * 50], 1)
    assert len(done) < 50


def test_tables_plot_and_what_is_kept(tmp_path, monkeypatch, capsys):
    """What is kept gives the same tables as the runs, without their models and single episodes."""
    for seed in (0, 1):
        run = whole_run(tmp_path / f"seed{seed}", seed, 0.02 * seed)
        record = read_json(run.path / "evaluation" / "pmpo.json")
        write_json(run.path / "evaluation" / "pmpo.json", {**record, "returns": [0.5] * 200})
    monkeypatch.setattr(sweep, "play", lambda *_: None)
    arguments = [str(tmp_path), "--preset", "smoke", "--seeds", "0", "1"]
    files = ["--plot", str(tmp_path / "curve.png"), "--keep", str(tmp_path / "kept")]
    monkeypatch.setattr(sys, "argv", ["sweep", *arguments, *files])
    assert sweep.main() == 0
    out, runs = capsys.readouterr().out, [tmp_path / f"seed{seed}" for seed in (0, 1)]
    assert compare(runs) in out and "| seed0 | " in out
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    kept = [tmp_path / "kept" / run.name for run in runs]
    assert compare(kept) == compare(runs)
    assert "returns" not in read_json(kept[0] / "evaluation" / "pmpo.json")
    assert not list(kept[0].rglob("*.safetensors")) and sum(f.stat().st_size for f in kept[0].rglob("*.json")) < 50_000


def test_minutes_are_those_until_the_policy(tmp_path):
    run = whole_run(tmp_path / "run").path
    total = sum(read_json(run / "finished" / f"{stage}.json")["cpu_seconds"] for stage in sweep.UNTIL_THE_POLICY)
    assert sweep.minutes(run) == total / 60 > 0
    keep(run, tmp_path / "kept")
    assert sweep.minutes(tmp_path / "kept") == sweep.minutes(run)
