"""Stage 4 on a cluster: a detached coordinator holds the loop, clients only watch it.

The coordinator and the learner are named after the run and outlive whoever started them. Ray starts a coordinator that
was lost again, on another node if need be; its loop begins in the constructor, since nobody will call it a second
time. It finds the learner under its name, takes over the run's lease with a higher number, and goes on.
"""

import os
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from cluster.clock import Clock
from cluster.nodes import draining_nodes
from cluster.placement import environment
from cluster.policy.autoscale import Autoscaler
from cluster.policy.ledger import Ledger
from cluster.policy.loop import ImaginationLoop
from cluster.policy.pool import Pool
from cluster.policy.rollout_rank import RolloutRank
from cluster.policy.schedule import Plan
from cluster.policy.telemetry import TelemetryWriter
from cluster.policy.trainer import PolicyTrainer
from cluster.policy.worker_group import WorkerSpec, remove_left_over
from cluster.registry.lease import LeaseKeeper
from cluster.registry.rules import DONE, FAILED, RUNNING, STOPPED
from cluster.run import Run
from cluster.variants import VARIANTS, Variant
from dreamer4.errors import DreamerError, RunError

NAMESPACE = "dreamer4"
LEASE_PATIENCE = 60.0  # seconds
LINGER = 60.0  # seconds that a coordinator waits for its client to hear how it ended
SHARE_OF_A_CPU = 0.01  # more than none, so that it is never put on a head that offers no CPUs


@dataclass(frozen=True)
class Status:
    """What clients are told."""

    state: str
    step: int = 0
    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    error: DreamerError | None = None
    details: str = ""  # a traceback, where it was not a user's mistake


def actor_name(run: Run, stage: str, role: str) -> str:
    return f"{run.path} {stage} {role}"


class Coordinator:
    """Drives stage 4, or one of its controls, to its end. A Ray actor; the loop runs in a thread of its own."""

    def __init__(self, path: str, name: str):
        self.run, self.variant = Run.attach(Path(path)), VARIANTS[name]
        self.stop_asked = threading.Event()
        self.heard = threading.Event()
        self.state, self.error, self.details = RUNNING, None, ""
        self.superseded = False
        self.loop: ImaginationLoop | None = None
        self.cpu_counted = 0.0
        threading.Thread(target=self._main, daemon=True, name="imagination loop").start()

    def status(self) -> Status:
        steps = self.run.config.policy.steps
        step = self.loop.schedule.updates if self.loop else 0
        metrics = self.loop.metrics if self.loop else {}
        if self.state != RUNNING:
            self.heard.set()
        return Status(self.state, step, steps, metrics, self.error, self.details)

    def stop(self) -> None:
        """Asks the loop to commit what is done and to end. The same command goes on from there."""
        self.stop_asked.set()

    def _main(self) -> None:
        try:
            if self.run.finished(self.variant.stage) is None:
                self._drive()
            self.state = DONE if self.run.finished(self.variant.stage) else STOPPED
        except DreamerError as error:
            self.error, self.state = error, FAILED
        except BaseException:
            self.details, self.state = traceback.format_exc(), FAILED
        if not self.superseded:  # else that name is another one's
            self.heard.wait(LINGER)
            time.sleep(1)  # the answer leaves before its sender
            end(self.run, self.variant.stage, "coordinator")

    def _drive(self) -> None:
        run, stage = self.run, self.variant.stage
        with self._lease() as keeper, keeper.telling_how_it_ends(stage), Clock(run, stage) as clock:
            remove_left_over(actor_name(run, stage, "worker"))
            learner = start_learner(run, self.variant)
            finished = False
            try:
                self.loop = loop = self._loop(learner, keeper, clock)
                loop.run()
                keeper.check()
                if loop.sought is None:  # a learner that is away has nothing beyond the checkpoint it comes back from
                    loop.commit()
                finished = loop.schedule.done
            finally:
                if self.loop is not None:
                    self.loop.pool.close()
                self.superseded = keeper.superseded()
                if not self.superseded:
                    end(run, stage, "learner")
            self._count_cpu(clock)
            loop.ledger.note("end", updates=loop.schedule.updates, finished=finished)
            keeper.publish(stage=stage, state=DONE if finished else STOPPED, step=loop.schedule.updates)
            if finished:
                run.finish(stage, {**self._record(loop), **clock.record()})

    @contextmanager
    def _lease(self) -> Iterator[LeaseKeeper]:
        """The right to write the run; waits for a former writer that is about to die, such as one of a killed Ray."""
        holder = f"coordinator of {self.variant.stage} on the Ray at {ray.get_runtime_context().gcs_address}"
        deadline = time.monotonic() + LEASE_PATIENCE
        with ExitStack() as stack:
            while True:
                try:
                    keeper = stack.enter_context(LeaseKeeper(self.run.path, holder))
                    break
                except RunError:
                    if time.monotonic() > deadline or self.stop_asked.wait(1):
                        raise
            yield keeper

    def _loop(self, learner: Any, keeper: LeaseKeeper, clock: Clock) -> ImaginationLoop:
        run, stage = self.run, self.variant.stage
        config, resources = run.config.policy, run.config.resources
        plan = Plan(config.steps, config.rollouts_per_step, config.max_staleness, config.save_every)
        least, most = (min(bound, plan.capacity) for bound in resources.worker_bounds())
        ledger = Ledger(run.path, stage)
        ledger.note("coordinator", token=keeper.lease.token, process=os.getpid())
        writer = TelemetryWriter(run.path, stage, resources.node_price)

        def show(row: dict[str, Any]) -> None:
            self._count_cpu(clock)
            writer.write(row)
            keeper.publish(
                stage=stage,
                state=RUNNING,
                step=row["step"],
                steps=plan.steps,
                weights_version=row["weights_version"],
                frames_per_s=row["frames_per_s"],
                workers=row["workers_ready"],
            )

        def stopped() -> bool:
            if keeper.lost.is_set():
                keeper.check()  # says to whom
            return self.stop_asked.is_set()

        spec = WorkerSpec(
            RolloutRank,
            (str(run.path), self.variant),
            shards=resources.shards,
            gpus=resources.worker_gpus,
            threads=resources.worker_threads,
        )
        wanted = min(resources.workers, most)
        pool = Pool(
            spec,
            f"{actor_name(run, stage, 'worker')} {keeper.lease.token}.",
            wanted,
            resources.rollout_timeout,
            ledger.note,
            draining_nodes,
        )
        autoscaler = Autoscaler(least, most, resources.scale_seconds, wanted)
        return ImaginationLoop(plan, pool, learner, keeper.lease, ledger, autoscaler, show, stopped)

    def _count_cpu(self, clock: Clock) -> None:
        """What workers, learner and this process have used since the last time."""
        if self.loop is not None:
            meter = self.loop.throughput
            own = time.process_time()
            clock.add_cpu(meter.cpu_seconds + own - self.cpu_counted)
            meter.cpu_seconds, self.cpu_counted = 0.0, own

    def _record(self, loop: ImaginationLoop) -> dict[str, Any]:
        meter = loop.throughput
        return {
            "steps": loop.schedule.updates,
            "imagined_frames": meter.frames,
            "frames_per_busy_second": meter.frames / max(meter.busy_seconds, 1e-9),
            "learner_starved": round(meter.whole.value, 3),
        }


def start_learner(run: Run, variant: Variant) -> Any:
    """The run's learner, found under its name or made. Ray starts it again where it is lost."""
    resources = run.config.resources
    return (
        ray.remote(PolicyTrainer)
        .options(
            name=actor_name(run, variant.stage, "learner"),
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            max_restarts=-1,
            max_task_retries=-1,
            num_cpus=1,
            num_gpus=resources.trainer_gpus,
            runtime_env=environment(resources.trainer_threads),
        )
        .remote(str(run.path), variant)
    )


def start_coordinator(run: Run, name: str) -> Any:
    """The run's coordinator, found under its name or made."""
    return (
        ray.remote(Coordinator)
        .options(
            name=actor_name(run, VARIANTS[name].stage, "coordinator"),
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            max_restarts=-1,
            max_task_retries=-1,
            num_cpus=SHARE_OF_A_CPU,
            runtime_env=environment(1),
        )
        .remote(str(run.path), name)
    )


def end(run: Run, stage: str, role: str, patience: float = 0.0) -> None:
    """Kills the coordinator or the learner of a run for good, if there is one.

    Args:
        patience: seconds to wait until the name is free, so that another one can be made under it.
    """
    deadline = time.monotonic() + patience
    with suppress(ValueError):  # there is none, or none any more
        actor = ray.get_actor(actor_name(run, stage, role), namespace=NAMESPACE)
        ray.kill(actor)
        while time.monotonic() < deadline:
            ray.get_actor(actor_name(run, stage, role), namespace=NAMESPACE)
            time.sleep(0.05)
