"""Stages 1 to 3 in several processes, by Ray Train: it starts them together, and together again when one is lost.

Every start goes on from the run's latest checkpoint, whatever the number of processes then and now. The first of them
writes log, ledger and checkpoints into the run directory; the driver shows how far they are. So nothing is kept by Ray
Train that a killed driver would lose.
"""

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import torch.distributed as dist

from cluster.board import Board, News
from cluster.clock import Clock
from cluster.placement import cause_of, environment, result, worker
from cluster.policy.ledger import Ledger
from cluster.pretrain import StageTrainer, Steps
from cluster.run import Run
from cluster.telemetry import MetricsWriter, Progress, WandbSink
from cluster.variants import training_of
from dreamer4.errors import DreamerError, NonFiniteError, RunError

os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")  # looked at by the imports below
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")  # how soon a start, a loss or the end is noticed
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # files that settings name lie where the user says they do

import ray.train
from ray.exceptions import RayError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

FAILURES = 3  # in a row without a new checkpoint, after which something is wrong that starting again won't mend
POLL_SECONDS = 0.5

T = TypeVar("T")


class TogetherError(Exception):
    """A user's mistake, or a loss that is no number, that all trainers know of: starting them again would not help."""

    def __init__(self, mistake: DreamerError):
        super().__init__(str(mistake))
        self.mistake = mistake


def together(action: Callable[[], T]) -> T:
    """Does something in all trainers that may fail in some; then it fails in all, and none waits for another."""
    value, mistake = None, None
    try:
        value = action()
    except DreamerError as error:
        mistake = error
    mistakes: list[DreamerError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(mistakes, mistake)
    for mistake in mistakes:
        if mistake is not None:
            raise TogetherError(mistake)
    return value  # pyright: ignore[reportReturnType]


def train_worker(job: dict[str, Any]) -> DreamerError | None:
    """One of the trainers, from the latest checkpoint to the end of the stage; what Ray Train runs in each process.

    Returns:
        The mistake for which no trainer can go on, if there is one.
    """
    try:
        _train(Path(job["path"]), job["stage"], job["board"])
        return None
    except TogetherError as error:
        return error.mistake


def _train(path: Path, stage: str, board: Any) -> None:
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    trainer = together(lambda: StageTrainer(str(path), stage, rank, world))
    together(trainer.fetch)
    start = together(trainer.restore)
    run, first = trainer.run, rank == 0
    ledger, metrics = Ledger(path, stage), MetricsWriter(run, wandb=False) if first else None
    processes = [0] * world
    dist.all_gather_object(processes, os.getpid())
    if metrics is not None:
        metrics.truncate_after(stage, start)
        ledger.note("start", updates=start, trainers=world, processes=processes)
        board.start.remote(start, world)

    def portion(most: int) -> list[dict[str, float]]:
        try:
            return trainer.portion(most)
        except NonFiniteError as error:  # the losses are those of all trainers, so each of them raises it
            raise TogetherError(error) from error

    def log(step: int, rows: list[dict[str, float]]) -> None:
        if metrics is not None:
            for number, row in enumerate(rows, start=step):
                metrics.write(stage, number, row)
            board.tell.remote(rows)
        board.spent.remote(trainer.cpu_seconds())

    def save(step: int) -> None:
        together(trainer.save)
        if first:
            ledger.note("saved", updates=step)
        ray.train.report({"updates": step})

    Steps(portion, log, save).run(start, training_of(run.config, stage))


def train_together(run: Run, stage: str) -> dict[str, float]:
    """Trains a stage to its end; returns its times. The driver's part.

    Raises:
        DreamerError: the mistake of a user, or the trainers fail again and again without getting further.
    """
    steps, resources = training_of(run.config, stage).steps, run.config.resources
    board = worker(Board, cpus=0, name=f"{stage} board", restarts=FAILURES).remote()
    sink = WandbSink(run) if run.config.logging.wandb else None
    show = _Display(stage, steps, sink)
    with Clock(run, stage) as clock:
        print(f"{stage}: starting {resources.trainers} trainers", file=sys.stderr, flush=True)
        fitted = _in_background(lambda: _fit(run, stage, board))
        while not fitted.done():
            time.sleep(POLL_SECONDS)
            news = result(board.take.remote())
            clock.add_cpu(news.cpu_seconds)
            show.update(news)
        if (mistake := fitted.result()) is not None:
            raise mistake
        last = result(board.take.remote())
        clock.add_cpu(last.cpu_seconds)
        show.update(last)
        show.close()
        return clock.record()


def _fit(run: Run, stage: str, board: Any) -> DreamerError | None:
    """Calls Ray Train until the stage is complete; again only where it got further than the time before."""
    checkpoints = run.checkpoints(stage)
    while True:
        before = checkpoints.latest()
        try:
            return _job(run, stage, board).fit().return_value
        except ray.train.WorkerGroupError as error:
            if checkpoints.latest() == before:
                raise _reason(stage, error) from error


def _job(run: Run, stage: str, board: Any) -> TorchTrainer:
    resources = run.config.resources
    trainers, least = resources.trainers, resources.min_trainers
    each = {"CPU": 1.0} | ({"GPU": resources.trainer_gpus} if resources.trainer_gpus else {})
    return TorchTrainer(
        train_worker,
        train_loop_config={"path": str(run.path), "stage": stage, "board": board},
        torch_config=TorchConfig(backend="nccl" if resources.trainer_gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=trainers if least in (None, trainers) else (least, trainers),
            use_gpu=bool(resources.trainer_gpus),
            resources_per_worker=each,
        ),
        run_config=RunConfig(
            name=stage,
            storage_path=str(run.path / "ray-train"),  # marks of its own; they show that all see the same directory
            failure_config=FailureConfig(max_failures=FAILURES),
            worker_runtime_env=environment(resources.trainer_threads),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _reason(stage: str, error: Any) -> Exception:
    """The sentence for a user, where trainers were lost or one raised it; a bug keeps its traceback."""
    failures = [getattr(failure, "cause", None) or failure for failure in error.worker_failures.values()]
    for failure in failures:
        if isinstance(failure, DreamerError):
            return failure
    for failure in failures:
        if isinstance(failure, RayError):
            return RunError(
                f"trainers of stage {stage} were lost {FAILURES + 1} times without getting to another checkpoint, the "
                f"last time by {cause_of(failure)}: start the same command again to go on from the last one"
            )
    return error


class _Display:
    """Progress on the terminal, and metrics for W&B."""

    def __init__(self, stage: str, steps: int, sink: WandbSink | None):
        self.stage, self.steps, self.sink = stage, steps, sink
        self.progress: Progress | None = None

    def update(self, news: News) -> None:
        for step, trainers in news.starts:
            if self.progress is None:
                self.progress = Progress(self.stage, self.steps, done=step)
            else:
                print(f"\n{self.stage}: {trainers} trainers go on from update {step}", file=sys.stderr, flush=True)
        if news.rows and self.progress is not None:
            self.progress.update(news.step + len(news.rows), news.rows[-1])
        if self.sink is not None:
            for step, row in enumerate(news.rows, start=news.step):
                self.sink.log(self.stage, step, row)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.close()


def _in_background(function: Callable[[], T]) -> "Future[T]":
    """Calls a function in a thread that doesn't keep the process alive, so that Ctrl-C is heard at once."""
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=call, name="ray train", daemon=True).start()
    return future
