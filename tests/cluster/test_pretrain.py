"""Stages 1 to 3 in several processes by the real Ray Train: the same numbers, whatever is killed and started again."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from actors.collector import Collector
from cluster.config import configure
from cluster.ledger import read_ledger
from cluster.presets import smoke
from cluster.pretrain import StageTrainer, Steps, train_stage
from cluster.run import Run
from cluster.telemetry import MetricsWriter, read_metrics
from dreamer4.data.writer import DatasetWriter
from dreamer4.envs.registry import spec
from dreamer4.errors import NonFiniteError

pytestmark = pytest.mark.xdist_group("ray")
STEPS, SAVE_EVERY = 120, 40
SETTINGS = [
    f"tokenizer_training.steps={STEPS}",
    f"tokenizer_training.save_every={SAVE_EVERY}",
    "tokenizer_training.optim.lr=1e-3",
]
TOLERANCE = 1e-4
Open = Callable[..., Run]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with recordings and nothing else."""
    path, config = tmp_path_factory.mktemp("recorded") / "run", configure(smoke(), SETTINGS)
    env, collector = spec(config.env), Collector(config.env, config.data.demonstrator, config.seed)
    with (
        Run.open(path, config) as run,
        DatasetWriter(run.data, env.name, env.frame_shape, env.actions, env.tasks) as to,
    ):
        for episode in collector.collect(0, 30):
            to.add(episode)
    return path


@pytest.fixture(scope="module")
def alone(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, float]], Any]:
    """Metrics and last checkpoint of one plain trainer, without Ray."""
    path = tmp_path_factory.mktemp("alone") / "run"
    shutil.copytree(recorded, path)
    trainer = StageTrainer(str(path), "tokenizer")
    rows: list[dict[str, float]] = []
    Steps(trainer.portion, lambda step, more: rows.extend(more), lambda step: trainer.save()).run(
        0, trainer.run.config.tokenizer_training
    )
    return rows, trainer.checkpoints.load()


@pytest.fixture
def opened(recorded: Path, tmp_path: Path) -> Iterator[Open]:
    """Gives a run of its own with further settings, on the same recordings."""
    path = tmp_path / "run"
    shutil.copytree(recorded, path, ignore=lambda *_: {"config.json"})
    runs: list[Run] = []

    def open_run(*settings: str) -> Run:
        runs.append(Run.open(path, configure(smoke(), [*SETTINGS, *settings])))
        return runs[-1]

    yield open_run
    for run in runs:
        run.close()


def assert_as_alone(run: Run, alone: tuple[list[dict[str, float]], Any]) -> None:
    """One row per update, in order, with the numbers of one trainer; and its last checkpoint, all but for rounding."""
    rows, last = alone
    found = read_metrics(run.metrics_path, "tokenizer")
    assert [row["step"] for row in found] == list(range(STEPS))
    for row, expected in zip(found, rows, strict=True):
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-3)
    saved = run.checkpoints("tokenizer").load(config=run.identity())
    assert saved.step == STEPS and saved.weights.keys() == last.weights.keys()
    for name, weight in last.weights.items():
        assert float((saved.weights[name] - weight).abs().max()) < TOLERANCE, name
    moments, expected = saved.state["optimizer"], last.state["optimizer"]
    assert moments.keys() == expected.keys()
    assert all(moments[i]["exp_avg"].shape == one["exp_avg"].shape for i, one in expected.items())
    record = run.finished("tokenizer")
    assert record is not None and record["steps"] == STEPS and record["cpu_seconds"] > 0


def starts(run: Run) -> list[dict[str, Any]]:
    return [event for event in read_ledger(run.path, "tokenizer") if event["event"] == "start"]


class Killer(Thread):
    """Kills a trainer in mid-interval, after the first checkpoint, and remembers how far the log was then."""

    def __init__(self, run: Run, rank: int):
        super().__init__(daemon=True)
        self.run_directory, self.rank, self.logged = run, rank, 0

    def run(self) -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            time.sleep(0.01)
            saved = self.run_directory.checkpoints("tokenizer").latest()
            rows = len(read_metrics(self.run_directory.metrics_path, "tokenizer"))
            if saved is not None and saved < rows < STEPS - 5:
                os.kill(starts(self.run_directory)[-1]["processes"][self.rank], signal.SIGKILL)
                self.logged = rows
                return


@pytest.mark.slow
def test_killed_trainer_is_started_again_from_the_last_checkpoint(ray_up, alone, opened):
    run = opened("resources.trainers=2")
    killer = Killer(run, rank=1)
    killer.start()
    train_stage(run, "tokenizer")
    first, *later = starts(run)
    assert first["updates"] == 0 and len(first["processes"]) == first["trainers"] == 2
    assert later and 0 < later[0]["updates"] < killer.logged < STEPS, "it was hit in mid-run, and updates were redone"
    assert not set(first["processes"]) & set(later[-1]["processes"])
    assert_as_alone(run, alone)


@pytest.mark.slow
def test_another_number_of_trainers_goes_on_and_the_storage_has_a_copy(ray_up, alone, opened, tmp_path):
    """One trainer does the beginning, two with a sharded model the rest; a lost folder comes back from the storage."""
    with opened() as run:
        early, metrics = StageTrainer(str(run.path), "tokenizer"), MetricsWriter(run)
        while early.position < SAVE_EVERY:
            step = early.position
            for number, row in enumerate(early.portion(SAVE_EVERY - step), start=step):
                metrics.write("tokenizer", number, row)
        early.save()
    storage = f"resources.storage=file://{tmp_path}/storage"
    run = opened("resources.trainers=2", "parallel.sharding=fsdp", storage)
    train_stage(run, "tokenizer")
    assert [(event["updates"], event["trainers"]) for event in starts(run)] == [(SAVE_EVERY, 2)]
    assert_as_alone(run, alone)
    shutil.rmtree(run.path / "tokenizer")
    again = StageTrainer(str(run.path), "tokenizer")
    again.fetch()
    assert again.restore() == STEPS


@pytest.mark.slow
def test_loss_that_is_no_number_is_one_sentence_and_nobody_tries_again(ray_up, opened):
    run = opened("resources.trainers=2", "tokenizer_training.optim.lr=1e30", "tokenizer_training.optim.warmup_steps=0")
    with pytest.raises(NonFiniteError, match=r"^tokenizer: .* at step ") as caught:
        train_stage(run, "tokenizer")
    assert "\n" not in str(caught.value)
    assert len(starts(run)) == 1
