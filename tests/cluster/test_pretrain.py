"""Stages 1 to 3: the loop over their updates; several trainers by the real Ray Train give the numbers of one."""

import importlib
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
from ranks import RankError, Ranks
from ray.exceptions import RayActorError
from spread import fail_together
from trained import (
    SAVE_EVERY,
    SETTINGS,
    STEPS,
    TOLERANCE,
    Killer,
    alone,
    assert_as_alone,
    distance,
    opened,
    recorded,
    starts,
    train,
)

from cluster import pretrain
from cluster.board import Board, News
from cluster.config import configure
from cluster.presets import smoke
from cluster.pretrain import StageTrainer, Steps, train_stage
from cluster.registry.lease import LeaseKeeper
from cluster.registry.registry import open_registry
from cluster.run import Run
from cluster.runtime import logical_cpus
from cluster.telemetry import MetricsWriter
from dreamer4.errors import ConfigError, DataError, RunError
from learners.tokenizer import TokenizerTraining

__all__ = ["alone", "opened", "recorded"]
pytestmark = pytest.mark.xdist_group("ray")


@pytest.mark.slow
def test_lost_trainer_is_started_again_and_another_number_goes_on(ray_up, alone, opened, tmp_path):
    """One trainer does the beginning, two with a sharded model the rest, and one of the two is killed meanwhile.

    Everything is copied to a storage, from which a lost folder comes back.
    """
    run = opened()
    early, metrics = StageTrainer(str(run.path), "tokenizer"), MetricsWriter(run)
    while early.position < SAVE_EVERY:
        step = early.position
        for number, row in enumerate(early.portion(SAVE_EVERY - step), start=step):
            metrics.write("tokenizer", number, row)
    early.save()
    storage = f"resources.storage=file://{tmp_path}/storage"
    run = opened("resources.trainers=2", "parallel.sharding=fsdp", storage)
    killer = Killer(run, rank=1)
    killer.start()
    train_stage(run, "tokenizer")
    first, second, *_ = starts(run)
    assert first["updates"] == SAVE_EVERY and first["trainers"] == second["trainers"] == len(first["processes"]) == 2
    assert SAVE_EVERY <= second["updates"] < killer.logged < STEPS, "it was hit in mid-run, and updates were redone"
    assert not set(first["processes"]) & set(second["processes"])
    assert_as_alone(run, alone)
    shutil.rmtree(run.path / "tokenizer")
    again = StageTrainer(str(run.path), "tokenizer")
    again.fetch()
    assert again.restore() == STEPS


def test_another_seed_learns_something_else(recorded, alone, tmp_path):
    """Negative control: what `assert_as_alone` allows is less than what seeds differ by, even after few updates."""
    path = tmp_path / "run"
    shutil.copytree(recorded, path, ignore=lambda *_: {"config.json"})
    with Run.open(path, configure(smoke(), [*SETTINGS, "seed=1", "tokenizer_training.steps=2"])):
        assert distance(train(path).last, alone.last) > 1000 * TOLERANCE


@pytest.fixture(scope="module")
def pair() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()


def test_mistake_of_one_trainer_is_that_of_all(pair):
    assert pair.call(fail_together, None) == ["rank 0 did it", "rank 1 did it"]
    for rank in (0, 1):
        with pytest.raises(RankError) as caught:
            pair.call(fail_together, rank)
        assert str(caught.value).count(f"TogetherError: rank {rank} has no disk") == 2
    assert pair.call(fail_together, None) == ["rank 0 did it", "rank 1 did it"], "they can go on"


@pytest.mark.parametrize(("start", "saved"), [(0, [4, 8, 10]), (4, [8, 10]), (5, [8, 10]), (10, [])])
def test_updates_are_logged_before_they_are_saved(start, saved):
    events = []

    def portion(most):
        return [{"loss": 0.0}] * min(most, 3)

    steps = Steps(portion, lambda step, rows: events.append((step, len(rows))), lambda step: events.append(step))
    assert steps.run(start, replace(TokenizerTraining(), steps=10, save_every=4)) == 10
    assert [event for event in events if isinstance(event, int)] == saved
    position = start
    for event in events:
        if isinstance(event, int):
            assert event == position
        else:
            assert event[0] == position
            position += event[1]


def test_news_are_told_once():
    board = Board()
    board.start(4, 2)
    board.tell([{"a": 1.0}, {"a": 2.0}])
    board.spent(1.5), board.spent(0.5)
    assert board.take() == News([(4, 2)], 4, [{"a": 1.0}, {"a": 2.0}], 2.0)
    board.tell([{"a": 3.0}])
    assert board.take() == News([], 6, [{"a": 3.0}], 0.0)


def test_what_a_lost_trainer_told_is_forgotten_when_others_go_on():
    board = Board()
    board.start(0, 2)
    board.tell([{"a": 1.0}] * 7)
    board.spent(1.0)
    board.start(4, 1)
    board.tell([{"a": 5.0}])
    assert board.take() == News([(0, 2), (4, 1)], 4, [{"a": 5.0}], 1.0)


@pytest.fixture
def train_job():
    """Imported when it is needed, because Ray Train takes seconds."""
    return importlib.import_module("cluster.train_job")


def test_display_says_when_trainers_go_on(train_job, capsys):
    display = train_job._Display("dynamics", 10, None)
    display.update(News([(0, 2)], 0, [{"loss": 1.0}] * 6))
    assert "go on" not in capsys.readouterr().err
    display.update(News([(4, 1)], 4, [{"loss": 1.0}] * 6))
    display.close()
    shown = capsys.readouterr().err
    assert "dynamics: 1 trainers go on from update 4" in shown and "dynamics 10/10" in shown


@pytest.mark.parametrize(
    ("failures", "expected", "words"),
    [
        ({0: RuntimeError("connection closed"), 1: DataError("no shard 3")}, DataError, ["no shard 3"]),
        ({0: RuntimeError("connection closed"), 1: RayActorError()}, RunError, ["dynamics", "4 times", "same command"]),
        ({0: ZeroDivisionError("a bug")}, None, ["a bug"]),
    ],
)
def test_what_ended_the_training_is_one_sentence_but_a_bug_keeps_its_traceback(train_job, failures, expected, words):
    error = train_job.ray.train.WorkerGroupError("\n".join(map(repr, failures.values())), failures)
    reason = train_job._reason("dynamics", error)
    assert type(reason) is (expected or type(error)) and all(word in str(reason) for word in words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["resources.trainers=5"], ["tokenizer_training.batch (32)", "trainers (5)"]),
        (["resources.trainers=2", "dynamics_training.long_batch=3"], ["dynamics_training.long_batch (3)"]),
        (["parallel.accumulate=3"], ["accumulate (3)"]),
        (["parallel.accumulate=0"], ["parallel.accumulate", "0"]),
        (["resources.trainers=0"], ["resources.trainers must be at least 1"]),
        (["resources.trainers=2", "resources.min_trainers=3"], ["min_trainers (3)", "trainers (2)"]),
        (["resources.min_trainers=0"], ["min_trainers (0)"]),
        (["resources.trainers=2", "resources.trainer_gpus=0.5"], ["2 trainers", "0.5"]),
        (["parallel.sharding=all"], ["parallel.sharding", "'fsdp'"]),
    ],
)
def test_impossible_trainers_are_refused_with_the_numbers(settings, words):
    with pytest.raises(ConfigError) as caught:
        configure(smoke(), settings)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_there_is_room_for_all_trainers():
    assert logical_cpus(configure(smoke(), ["resources.trainers=8"])) == 8


def test_how_training_is_spread_may_change_from_start_to_start(tmp_path):
    settings = ["resources.trainers=2", "parallel.sharding=fsdp", "parallel.precision=bfloat16"]
    for more in ([], settings):
        with Run.open(tmp_path / "run", configure(smoke(), more)) as run:
            assert "parallel" not in run.identity()


def test_a_run_that_another_one_writes_is_not_trained(tmp_path):
    """Refused before anything is started, so without Ray."""
    with (
        Run.open(tmp_path / "run", configure(smoke(), [])) as run,
        LeaseKeeper(run.path, "somebody"),
        pytest.raises(RunError, match="is written by 'somebody'"),
    ):
        train_stage(run, "tokenizer")
    assert run.checkpoints("tokenizer").latest() is None and run.finished("tokenizer") is None


def test_a_stage_does_not_show_the_facts_of_the_last_one(directory_run, monkeypatch):
    def train_alone(run: Run, stage: str, keeper: LeaseKeeper) -> dict[str, float]:
        seen.append(open_registry(run.path).read())
        return {}

    seen = []
    monkeypatch.setattr(pretrain, "train_alone", train_alone)
    with LeaseKeeper(directory_run, "stage 4") as keeper:
        keeper.publish(stage="policy", state="done", step=77, frames_per_s=900.0, workers=3)
    with Run.open(directory_run, configure(smoke(), [])) as run:
        train_stage(run, "filtered_bc")
    assert [seen[0][name] for name in ("stage", "step", "frames_per_s", "workers")] == ["filtered_bc", None, None, None]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (KeyboardInterrupt(), "stopped"),
        (SystemExit(15), "stopped"),  # what Ray makes of SIGTERM
        (DataError("no shard 3"), "failed"),
        (ZeroDivisionError("a bug"), "failed"),
    ],
)
def test_who_looks_is_told_how_a_training_ended_before_its_end(directory_run, monkeypatch, error, state):
    def train_alone(run: Run, stage: str, keeper: LeaseKeeper) -> dict[str, float]:
        keeper.publish(step=4)
        seen.append(open_registry(run.path).read())
        raise error

    seen = []
    monkeypatch.setattr(pretrain, "train_alone", train_alone)
    with Run.open(directory_run, configure(smoke(), [])) as run, pytest.raises(type(error)):
        train_stage(run, "tokenizer")
    seen.append(open_registry(run.path).read())
    assert [(told["stage"], told["state"], told["step"]) for told in seen] == [
        ("tokenizer", "running", 4),
        ("tokenizer", state, 4),
    ]
    assert seen[0]["holder"] is not None and seen[1]["holder"] is None
