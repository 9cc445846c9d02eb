"""Stages 1 to 3: a trainer does portions of updates, and what they gave is noted.

A portion's metrics are written before the checkpoint, so a checkpoint never knows a step that the log doesn't; what the
log has beyond a checkpoint is cut off and done again.
"""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cluster.clock import Clock
from cluster.models import RunData, choose_device, load_agent, load_dynamics, new_dynamics, new_heads, new_tokenizer
from cluster.models import load_policy as load_policy_head
from cluster.placement import result, worker
from cluster.registry.lease import LeaseKeeper
from cluster.registry.rules import DONE, RUNNING
from cluster.run import Run
from cluster.telemetry import MetricsWriter, Progress
from cluster.utilisation import Utilisation
from cluster.variants import IMITATIONS, training_of
from dreamer4.data.loader import Prefetch
from dreamer4.data.statistics import pixel_statistics
from dreamer4.mirror import Mirror
from dreamer4.rng import seed_of
from learners.agent import AgentLearner, FilteredBCLearner, ScratchBCLearner
from learners.dynamics import DynamicsLearner
from learners.iql import IQLLearner, IQLModel
from learners.learner import Learner
from learners.parallel import Parallel
from learners.tokenizer import TokenizerLearner

AHEAD = 2  # batches that are read before they are asked for
PORTION_SECONDS = 0.5  # how often a trainer tells how far it is


def build_learner(run: Run, stage: str) -> Learner:
    """The learner of a stage before its first update."""
    config, data, device = run.config, RunData(run), choose_device(run)
    if stage == "tokenizer":
        tokenizer = new_tokenizer(run)
        if config.tokenizer.standardize:
            mean, std = pixel_statistics(data.dataset, data.training_E, 20_000, config.seed)
            tokenizer.set_pixel_statistics(torch.from_numpy(mean), torch.from_numpy(std))
        return TokenizerLearner(tokenizer.to(device), config.tokenizer_training, data.mixed_clips(stage), config.seed)
    if stage == "dynamics":
        clips = data.mixed_clips(stage, latents=True)
        dynamics = new_dynamics(run).to(device)
        return DynamicsLearner(dynamics, config.dynamics_training, config.shortcut, clips, config.seed)
    if stage == "agent":
        dynamics, heads = load_dynamics(run), new_heads(run).to(device)
        clips, relevant = data.clips(stage, latents=True), data.relevant()
        return AgentLearner(
            dynamics,
            heads,
            config.agent_training,
            config.shortcut,
            clips,
            relevant,
            config.seed,
            halved=config.data.half_distinct,
        )
    if stage in IMITATIONS:
        imitation, training = IMITATIONS[stage], training_of(config, stage)
        clips = data.clips(stage, imitation.chosen(data.dataset, data.training_E, config.best_share), latents=True)
        if imitation.scratch:
            dynamics, policy = new_dynamics(run).to(device), new_heads(run).policy.to(device)
            return ScratchBCLearner(dynamics, policy, training, config.shortcut, clips, config.seed)
        dynamics, policy = load_agent(run).dynamics, load_policy_head(run, "bc")
        return FilteredBCLearner(dynamics, policy, training, config.shortcut, clips, config.seed)
    if stage == "iql":
        dynamics, policy, clips = load_agent(run).dynamics, load_policy_head(run, "bc"), data.clips(stage, latents=True)
        with torch.random.fork_rng(devices=[]):  # modules draw their weights from torch's global generator
            torch.manual_seed(seed_of(config.seed, "iql weights"))
            model = IQLModel(policy, dynamics.config.feature_width, config.iql_training).to(device)
        return IQLLearner(
            dynamics, model, config.iql_training, config.policy.discount, config.shortcut, clips, config.seed
        )
    raise ValueError(f"no stage '{stage}' is trained here")


def read_ahead(learner: Learner, device: torch.device, packed: bool) -> None:
    """Batches are read while the learner computes, where that takes longer than a memory copy; no bit changes."""
    if device.type != "cuda" and not packed:
        return
    shape = partial(learner.training.batch_shape, learner.seed) if isinstance(learner, DynamicsLearner) else None
    learner.clips = Prefetch(learner.clips, AHEAD, shape, pin=device.type == "cuda")  # type: ignore[attr-defined]


class StageTrainer:
    """Holds the learner of a stage and its checkpoints: alone, or as one of `world` processes that train together."""

    def __init__(self, path: str, stage: str, rank: int = 0, world: int = 1):
        self.run, self.stage, self.rank = Run.attach(Path(path)), stage, rank
        self.learner = build_learner(self.run, stage)
        codecs = {dataset.manifest.recording.codec.kind for dataset, _ in RunData(self.run).places}
        read_ahead(self.learner, choose_device(self.run), codecs != {"raw"})
        config = self.run.config
        self.learner.parallelise(Parallel(config.parallel, rank, world))
        self.utilisation = Utilisation(config.resources, choose_device(self.run), config.parallel.precision, world)
        self.checkpoints, self.position = self.run.checkpoints(stage), 0
        storage = config.resources.storage
        self.mirror = Mirror(f"{storage}/{stage}") if storage is not None and rank == 0 else None
        self.started = time.process_time()

    def restore(self) -> int:
        """Goes on from the latest checkpoint, if there is one; returns the updates done."""
        if self.checkpoints.latest() is not None:
            saved = self.checkpoints.load(config=self.run.identity())
            self.learner.restore(saved.weights, saved.state)
            self.position = saved.step
        return self.position

    def fetch(self) -> None:
        """Brings a later checkpoint from the storage into the run directory."""
        if self.mirror is not None and (there := self.mirror.latest()) is not None:
            here = self.checkpoints.latest()
            if here is None or here < there:
                self.mirror.pull(there, self.checkpoints)

    def portion(self, most: int) -> list[dict[str, float]]:
        """Up to `most` updates, fewer where they take long; returns their metrics, in order."""
        rows, begin = [], time.monotonic()
        while len(rows) < most and (not rows or time.monotonic() - begin < PORTION_SECONDS):
            started = time.monotonic()
            row = self.learner.step(self.position)
            flops, seconds = self.learner.estimate_flops(self.position), time.monotonic() - started
            rows.append({**row, **self.utilisation.metrics(flops, seconds)})
            self.position += 1
        return rows

    def save(self) -> None:
        """Of several processes, all have to call it, because each may hold a part of the model; the first writes."""
        weights, state = self.learner.weights(), self.learner.state()
        if self.rank == 0:
            folder = self.checkpoints.save(self.position, weights, state, self.run.identity())
            if self.mirror is not None:
                self.mirror.push(folder)

    def cpu_seconds(self) -> float:
        """Since the last call."""
        now = time.process_time()
        spent, self.started = now - self.started, now
        return spent


@dataclass(frozen=True)
class Steps:
    """The loop over a stage's updates, wherever its trainer is."""

    portion: Callable[[int], list[dict[str, float]]]  # does up to so many updates
    log: Callable[[int, list[dict[str, float]]], None]  # notes those from this one on, before they are saved
    save: Callable[[int], None]  # after so many updates

    def run(self, step: int, training: Any) -> int:
        """From update number `step` to the last one, with a checkpoint every `save_every`; returns the updates done."""
        while step < training.steps:
            until_save = training.save_every - step % training.save_every
            rows = self.portion(min(until_save, training.steps - step))
            self.log(step, rows)
            step += len(rows)
            if step % training.save_every == 0 or step == training.steps:
                self.save(step)
        return step


def train_stage(run: Run, stage: str) -> None:
    """Trains a stage to its end, from wherever its last checkpoint is: in one actor, or in several by Ray Train.

    Raises:
        RunError: another process writes the run.
    """
    steps = training_of(run.config, stage).steps
    holder = f"{stage} training of process {os.getpid()} on {socket.gethostname()}"
    with LeaseKeeper(run.path, holder) as keeper, keeper.telling_how_it_ends(stage):
        unknown = dict.fromkeys(("step", "frames_per_s", "workers"))  # those that stand there are the last stage's
        keeper.publish(stage=stage, state=RUNNING, steps=steps, **unknown)
        if run.config.resources.trainers > 1:
            from cluster.train_job import train_together  # importing Ray Train takes seconds

            times = train_together(run, stage)
        else:
            times = train_alone(run, stage, keeper)
        run.finish(stage, {"steps": steps, **times})
        keeper.publish(stage=stage, state=DONE, step=steps)


def train_alone(run: Run, stage: str, keeper: LeaseKeeper) -> dict[str, float]:
    """One actor trains, this process keeps the log and the lease; returns the times of the stage."""
    training, resources = training_of(run.config, stage), run.config.resources
    trainer = worker(
        StageTrainer, cpus=1, gpus=resources.trainer_gpus, name=f"{stage} trainer", threads=resources.trainer_threads
    ).remote(str(run.path), stage)
    result(trainer.fetch.remote())
    step = result(trainer.restore.remote())
    keeper.publish(step=step)
    metrics = MetricsWriter(run)
    metrics.truncate_after(stage, step)
    progress = Progress(stage, training.steps, done=step)
    with Clock(run, stage) as clock:

        def log(first: int, rows: list[dict[str, float]]) -> None:
            for step, row in enumerate(rows, start=first):
                metrics.write(stage, step, row)
            progress.update(first + len(rows), rows[-1])
            clock.add_cpu(result(trainer.cpu_seconds.remote()))

        def save(done: int) -> None:
            keeper.check()  # whoever lost the lease writes no checkpoint
            result(trainer.save.remote())
            keeper.publish(step=done)

        Steps(lambda most: result(trainer.portion.remote(most)), log, save).run(step, training)
        progress.close()
        return clock.record()
