"""A tokenizer trained on a small recording, in ways that have to give the same numbers: fixtures, and what to compare.

The reference is one plain trainer without Ray.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import pytest

from actors.collector import Collector
from cluster.config import configure
from cluster.policy.ledger import read_ledger
from cluster.presets import smoke
from cluster.pretrain import StageTrainer, Steps
from cluster.run import Run
from cluster.telemetry import read_metrics
from cluster.utilisation import TIMED
from dreamer4.checkpoint import Checkpoint
from dreamer4.data.writer import DatasetWriter
from dreamer4.envs.registry import spec

STEPS, SAVE_EVERY = 90, 30
SETTINGS = [
    f"tokenizer_training.steps={STEPS}",
    f"tokenizer_training.save_every={SAVE_EVERY}",
    "tokenizer_training.optim.lr=1e-3",
]
TOLERANCE = 1e-4  # of weights after all updates; two seeds differ by more than 0.1


class Trained(NamedTuple):
    rows: list[dict[str, float]]
    last: Checkpoint


def record(run: Run, episodes: int = 30, shard_frames: int = 10_000) -> None:
    """Lets the demonstrator of a run play, in this process."""
    config = run.config
    env, collector = spec(config.env), Collector(config.env, config.data.demonstrator, config.seed)
    shape = (env.name, env.frame_shape, env.actions, env.tasks)
    with DatasetWriter(run.data, *shape, shard_frames=shard_frames) as writer:
        for episode in collector.collect(0, episodes):
            writer.add(episode)
    run.finish("collect", {})


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with recordings and nothing else."""
    with Run.open(tmp_path_factory.mktemp("recorded") / "run", configure(smoke(), SETTINGS)) as run:
        record(run)
        return run.path


@pytest.fixture(scope="module")
def alone(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What one plain trainer gives."""
    path = tmp_path_factory.mktemp("alone") / "run"
    shutil.copytree(recorded, path)
    return train(path)


def train(path: Path) -> Trained:
    trainer, rows = StageTrainer(str(path), "tokenizer"), list[dict[str, float]]()
    steps = Steps(trainer.portion, lambda step, more: rows.extend(more), lambda step: trainer.save())
    steps.run(0, trainer.run.config.tokenizer_training)
    return Trained(rows, trainer.checkpoints.load())


@pytest.fixture
def opened(recorded: Path, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Opens a run of its own on the recordings, again and again, with further settings."""
    path, runs = tmp_path / "run", list[Run]()
    shutil.copytree(recorded, path, ignore=lambda *_: {"config.json"})

    def open_run(*settings: str) -> Run:
        if runs:
            runs[-1].close()
        runs.append(Run.open(path, configure(smoke(), [*SETTINGS, *settings])))
        return runs[-1]

    yield open_run
    if runs:
        runs[-1].close()


def starts(run: Run) -> list[dict[str, Any]]:
    """When trainers were started together, from the run's ledger."""
    return [event for event in read_ledger(run.path, "tokenizer") if event["event"] == "start"]


def distance(one: Checkpoint, other: Checkpoint) -> float:
    """Largest difference of a weight."""
    assert one.weights.keys() == other.weights.keys()
    return max(float((one.weights[name] - weight).abs().max()) for name, weight in other.weights.items())


def assert_as_alone(run: Run, alone: Trained) -> None:
    """One row per update, in order, with the numbers of one trainer, and its last checkpoint; all but for rounding."""
    found = read_metrics(run.metrics_path, "tokenizer")
    assert [row["step"] for row in found] == list(range(STEPS))
    for row, expected in zip(found, alone.rows, strict=True):
        numbers = {name: value for name, value in expected.items() if name not in TIMED}
        assert row.keys() >= expected.keys()
        assert {name: row[name] for name in numbers} == pytest.approx(numbers, rel=1e-3)
    saved = run.checkpoints("tokenizer").load(config=run.identity())
    assert saved.step == STEPS and distance(saved, alone.last) < TOLERANCE
    mine, theirs = saved.state["optimizer"], alone.last.state["optimizer"]
    assert moments(mine) == moments(theirs)
    noted = run.finished("tokenizer")
    assert noted is not None and noted["steps"] == STEPS and noted["cpu_seconds"] > 0


def moments(state: dict[int, dict[str, Any]]) -> dict[int, dict[str, tuple[int, ...]]]:
    """Shapes of what an optimiser remembers of each parameter."""
    return {i: {name: tuple(value.shape) for name, value in one.items() if value.ndim} for i, one in state.items()}


def in_mid_interval(run: Run, after: int) -> int:
    """How far the log is, if it is beyond a checkpoint of more than `after` updates and not near the end; else 0."""
    saved = run.checkpoints("tokenizer").latest()
    rows = len(read_metrics(run.metrics_path, "tokenizer"))
    return rows if saved is not None and after < saved < rows < STEPS - 5 else 0


def wait_for_mid_interval(run: Run, after: int = 0) -> int:
    """The same, as soon as it isn't 0."""
    deadline = time.monotonic() + 300
    while not (rows := in_mid_interval(run, after)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return rows


class Killer(Thread):
    """Kills a trainer in mid-interval, and remembers how far the log was then (0: it came too late)."""

    def __init__(self, run: Run, rank: int):
        super().__init__(daemon=True)
        self.of, self.rank, self.logged = run, rank, 0

    def run(self) -> None:
        while not starts(self.of):
            time.sleep(0.01)
        logged = wait_for_mid_interval(self.of)
        os.kill(starts(self.of)[-1]["processes"][self.rank], signal.SIGKILL)
        self.logged = logged
