"""Stage 4: workers imagine, one learner improves the policy, references in between (design.md, section 5).

Rollout number i belongs to update i // rollouts_per_step. The rollouts of update n are imagined with the weights of
version max(0, n - max_staleness): the staleness is exact, so even an overlapping run gives the same numbers every time.
The driver hands references on and never sees an array.
"""

import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from actors.imagination import ImaginationWorker
from cluster.clock import Clock
from cluster.models import RunData, load_agent, load_policy
from cluster.placement import result, worker
from cluster.run import Run
from cluster.telemetry import MetricsWriter, Progress
from dreamer4.types import Rollout, Weights
from learners.policy import PolicyLearner


@dataclass(frozen=True)
class Variant:
    """The headline or a control: what differs from the run's config."""

    stage: str = "policy"
    horizon: int | None = None  # instead of the config's, with as many imagined frames per update
    shuffle_actions: bool = False  # the world model gets another trajectory's actions


VARIANTS = {
    "policy": Variant(),
    "horizon_1": Variant("horizon_1", horizon=1),
    "shuffled": Variant("shuffled", shuffle_actions=True),
}


def build_worker(path: str, variant: Variant) -> ImaginationWorker:
    """A worker with everything loaded from the run's files."""
    run = Run.attach(Path(path))
    config, imagination, batch = run.config, run.config.imagination, run.config.policy.batch
    if variant.horizon is not None:
        batch = batch * imagination.horizon // variant.horizon
        imagination = replace(imagination, horizon=variant.horizon)
    model = load_agent(run)
    return ImaginationWorker(
        model.dynamics,
        model.heads,
        load_policy(run, "bc"),
        RunData(run).clips("contexts", latents=True, ends_alive=True),
        config.shortcut,
        imagination,
        batch,
        config.seed,
        variant.shuffle_actions,
    )


class RolloutActor:
    """An imagination worker in a process of its own."""

    def __init__(self, path: str, variant: Variant):
        self.worker = build_worker(path, variant)
        self.frames, self.busy = 0, 0.0

    def rollout(self, index: int, weights: Weights) -> Rollout:
        begin = time.monotonic()
        rollout = self.worker.rollout(index, weights)
        self.frames += rollout.reward_BT.size
        self.busy += time.monotonic() - begin
        return rollout

    def usage(self) -> dict[str, float]:
        """Imagined frames, and seconds spent on them, so far."""
        return {"frames": self.frames, "busy_seconds": self.busy, "cpu_seconds": time.process_time()}


class PolicyTrainer:
    """The learner in a process of its own, with the weights versions that rollouts may still need."""

    def __init__(self, path: str, variant: Variant):
        self.run = Run.attach(Path(path))
        self.variant = variant
        config = self.run.config
        head = load_policy(self.run, "bc")
        self.learner = PolicyLearner(head, config.dynamics.feature_width, config.policy, config.seed)
        self.recent: deque[Weights] = deque(maxlen=config.policy.max_staleness + 1)
        self.checkpoints = self.run.checkpoints(variant.stage)
        self.config = {**self.run.identity(), "variant": asdict(variant)}
        if self.checkpoints.latest() is None:
            self.recent.append(self._version())
        else:
            saved = self.checkpoints.load(config=self.config)
            self.learner.restore(saved.weights, saved.state["learner"])
            for version in saved.state["recent"]:
                policy = {name: value.numpy() for name, value in version["policy"].items()}
                self.recent.append(Weights(version["version"], policy))

    def _version(self) -> Weights:
        return Weights(self.learner.updates, self.learner.policy_weights())

    def updates(self) -> int:
        return self.learner.updates

    def weights(self, version: int) -> Weights:
        """One of the last versions; what a resumed loop starts its workers from."""
        return next(weights for weights in self.recent if weights.version == version)

    def step(self, index: int, *rollouts: Rollout) -> tuple[dict[str, float], Weights]:
        """One update; its metrics and the new weights go back as two references."""
        begin = time.monotonic()
        metrics = self.learner.step(index, list(rollouts))
        if metrics:  # empty where the update was applied before
            metrics["learner_seconds"] = time.monotonic() - begin
            self.recent.append(self._version())
        return metrics, self.weights(self.learner.updates)

    def save(self) -> None:
        recent = [
            {"version": w.version, "policy": {k: torch.from_numpy(v) for k, v in w.policy.items()}} for w in self.recent
        ]
        state = {"learner": self.learner.state(), "recent": recent}
        self.checkpoints.save(self.learner.updates, self.learner.weights(), state, self.config)

    def cpu_seconds(self) -> float:
        return time.process_time()


class Loop:
    """References in flight. Rollouts are requested `max_staleness` updates ahead of the learner."""

    def __init__(self, run: Run, variant: Variant):
        resources, policy = run.config.resources, run.config.policy
        self.staleness, self.per_step, self.steps = policy.max_staleness, policy.rollouts_per_step, policy.steps
        arguments = (str(run.path), variant)
        self.trainer = worker(
            PolicyTrainer, cpus=1, gpus=resources.trainer_gpus, name="policy trainer", threads=resources.trainer_threads
        ).remote(*arguments)
        # Rollouts are functions of their arguments: a worker that died may simply be started and asked again.
        imagine = worker(
            RolloutActor,
            cpus=1,
            gpus=resources.worker_gpus,
            name="imagination",
            threads=resources.worker_threads,
            restarts=3,
        )
        self.workers = [imagine.remote(*arguments) for _ in range(resources.workers)]
        self.start = result(self.trainer.updates.remote())
        oldest = max(0, self.start - self.staleness)
        self.versions = {v: self.trainer.weights.remote(v) for v in range(oldest, self.start + 1)}
        self.pending: dict[int, list[Any]] = {}

    def request(self, step: int) -> None:
        """Asks for the rollouts of an update, as soon as the weights they are imagined with have a reference."""
        version = max(0, step - self.staleness)
        indices = range(step * self.per_step, (step + 1) * self.per_step)
        self.pending[step] = [
            self.workers[i % len(self.workers)].rollout.remote(i, self.versions[version]) for i in indices
        ]

    def advance(self, step: int) -> Any:
        """Queues update number `step`; returns the reference of its metrics."""
        for ahead in range(step, min(step + self.staleness, self.steps - 1) + 1):
            if ahead not in self.pending:
                self.request(ahead)
        metrics, weights = self.trainer.step.options(num_returns=2).remote(step, *self.pending.pop(step))
        self.versions[step + 1] = weights
        self.versions.pop(step - self.staleness, None)
        return metrics


def improve_policy(run: Run, name: str = "policy") -> None:
    """Runs stage 4, or one of its controls, to its end from wherever its last checkpoint is."""
    variant, policy = VARIANTS[name], run.config.policy
    loop = Loop(run, variant)
    metrics = MetricsWriter(run)
    metrics.truncate_after(variant.stage, loop.start)
    progress = Progress(variant.stage, policy.steps, done=loop.start)
    with Clock(run, variant.stage) as clock:
        for step in range(loop.start, policy.steps):
            row = result(loop.advance(step))
            metrics.write(variant.stage, step, row)
            progress.update(step + 1, row)
            if (step + 1) % policy.save_every == 0 or step + 1 == policy.steps:
                result(loop.trainer.save.remote())
        usage = [result(actor.usage.remote()) for actor in loop.workers]
        clock.add_cpu(sum(one["cpu_seconds"] for one in usage) + result(loop.trainer.cpu_seconds.remote()))
    progress.close()
    busy = sum(one["busy_seconds"] for one in usage)
    frames = sum(one["frames"] for one in usage)
    record = {"steps": policy.steps, "imagined_frames": frames, "frames_per_busy_second": frames / max(busy, 1e-9)}
    run.finish(variant.stage, {**record, **clock.record()})
