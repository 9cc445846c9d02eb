"""The client of stage 4: starts or finds the coordinator, shows its progress, and tells how it ended."""

import sys
import time
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError

from cluster.placement import mistake_behind
from cluster.policy.coordinator import DONE, FAILED, RUNNING, STOPPED, Status, end, start_coordinator
from cluster.registry.registry import open_registry
from cluster.run import Run
from cluster.telemetry import Progress
from cluster.variants import VARIANTS
from dreamer4.errors import RunError

POLL_SECONDS = 0.2
NAME_SECONDS = 30.0  # until the name of a killed coordinator is free
HEARING_SECONDS = 10.0  # for an answer
SILENCE_SECONDS = 120.0  # after which the lease is looked at: longer than a coordinator takes to come back
STOP_SECONDS = 30.0  # that an interrupted client waits for the last checkpoint


def improve_policy(run: Run, name: str = "policy") -> None:
    """Stage 4, or one of its controls, to its end from wherever it is.

    The work is the coordinator's: where this process is killed, it goes on, and the same command finds it. Where it is
    interrupted or asked to terminate (as by `ray job stop`), the coordinator commits what is done and ends too.

    Raises:
        DreamerError: as the coordinator ended.
    """
    stage = VARIANTS[name].stage
    coordinator = _attach(run, name)
    progress: Progress | None = None
    try:
        while (status := _ask(coordinator, run, stage)).state == RUNNING:
            if status.step and progress is None:
                progress = Progress(stage, status.steps, done=status.step)
            if progress is not None:
                progress.update(status.step, status.metrics)
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        _stop(coordinator, run, stage)
        raise
    if progress is not None:
        progress.update(status.step, status.metrics)
        progress.close()
    end(run, stage, "coordinator")
    if status.state == FAILED:
        if status.error is not None:
            raise status.error
        print(status.details, file=sys.stderr)
        raise RunError(
            f"stage {stage} of run '{run.path}' failed by a bug of ours, see above: the same command goes on"
        )
    if status.state == STOPPED:
        raise RunError(
            f"stage {stage} of run '{run.path}' was stopped after {status.step} updates: the same command goes on"
        )


def _attach(run: Run, name: str) -> Any:
    """The coordinator of the run; one that has ended and waits to tell so is replaced."""
    coordinator = start_coordinator(run, name)
    if _ask(coordinator, run, VARIANTS[name].stage).state in (FAILED, STOPPED):
        end(run, VARIANTS[name].stage, "coordinator", patience=NAME_SECONDS)
        coordinator = start_coordinator(run, name)
    return coordinator


def _ask(coordinator: Any, run: Run, stage: str) -> Status:
    """How things are; waits while the coordinator is started again, or while the cluster's head is away.

    A client that lived through the loss of the head may never hear of its coordinator again, although both are well:
    then the run's files and its lease tell how it ended.
    """
    asked = time.monotonic()
    while True:
        try:
            return ray.get(coordinator.status.remote(), timeout=HEARING_SECONDS)
        except GetTimeoutError:
            pass
        except ActorDiedError as error:
            if run.finished(stage) is None:
                if mistake := mistake_behind(error):
                    raise mistake from None
                raise RunError(f"the coordinator of stage {stage} of run '{run.path}' was killed: {error}") from error
        except RayError:  # not to be reached for the moment
            time.sleep(1)
        if run.finished(stage) is not None:
            steps = run.config.policy.steps
            return Status(DONE, steps, steps)
        if time.monotonic() - asked > SILENCE_SECONDS and open_registry(run.path).read()["holder"] is None:
            raise RunError(
                f"stage {stage} of run '{run.path}' is not driven by anybody any more, and its coordinator doesn't "
                "answer: the same command goes on"
            )


def _stop(coordinator: Any, run: Run, stage: str) -> None:
    """Asks for a last checkpoint and waits for it, but not for ever."""
    print(f"\n{stage}: stopping after a checkpoint", file=sys.stderr, flush=True)
    deadline = time.monotonic() + STOP_SECONDS
    coordinator.stop.remote()
    while time.monotonic() < deadline and _ask(coordinator, run, stage).state == RUNNING:
        time.sleep(POLL_SECONDS)
