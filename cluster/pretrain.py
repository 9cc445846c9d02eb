"""Stages 1 to 3 as Ray actors: a trainer does portions of updates, the driver notes what they gave.

The driver writes a portion's metrics before it asks for the checkpoint, so a checkpoint never knows a step that the
log doesn't; what the log has beyond a checkpoint is cut off and done again.
"""

import time
from pathlib import Path

import torch

from cluster.clock import Clock
from cluster.models import RunData, choose_device, load_agent, load_dynamics, new_dynamics, new_heads, new_tokenizer
from cluster.models import load_policy as load_policy_head
from cluster.placement import result, worker
from cluster.run import Run
from cluster.telemetry import MetricsWriter, Progress
from dreamer4.data.statistics import pixel_statistics
from learners.agent import AgentLearner, FilteredBCLearner
from learners.dynamics import DynamicsLearner
from learners.learner import Learner
from learners.tokenizer import TokenizerLearner

PORTION_SECONDS = 2.0  # how often the driver hears from a trainer


def build_learner(run: Run, stage: str) -> Learner:
    """The learner of a stage before its first update."""
    config, data, device = run.config, RunData(run), choose_device(run)
    if stage == "tokenizer":
        tokenizer = new_tokenizer(run)
        if config.tokenizer.standardize:
            mean, std = pixel_statistics(data.dataset, data.training_E, 20_000, config.seed)
            tokenizer.set_pixel_statistics(torch.from_numpy(mean), torch.from_numpy(std))
        return TokenizerLearner(tokenizer.to(device), config.tokenizer_training, data.clips(stage), config.seed)
    if stage == "dynamics":
        clips = data.clips(stage, latents=True)
        dynamics = new_dynamics(run).to(device)
        return DynamicsLearner(dynamics, config.dynamics_training, config.shortcut, clips, config.seed)
    success_E = data.dataset.success_E & data.training_E
    if stage == "agent":
        dynamics, heads = load_dynamics(run), new_heads(run).to(device)
        clips = data.clips(stage, latents=True)
        return AgentLearner(dynamics, heads, config.agent_training, config.shortcut, clips, success_E, config.seed)
    if stage == "filtered_bc":
        dynamics, policy = load_agent(run).dynamics, load_policy_head(run, "bc")
        clips = data.clips(stage, success_E, latents=True)
        return FilteredBCLearner(dynamics, policy, config.filtered_bc_training, config.shortcut, clips, config.seed)
    raise ValueError(f"no stage '{stage}' is trained here")


class StageTrainer:
    """Holds the learner of a stage and its checkpoints, in a process of its own."""

    def __init__(self, path: str, stage: str):
        self.run = Run.attach(Path(path))
        self.learner = build_learner(self.run, stage)
        self.checkpoints = self.run.checkpoints(stage)
        self.position = 0
        if self.checkpoints.latest() is not None:
            saved = self.checkpoints.load(config=self.run.identity())
            self.learner.restore(saved.weights, saved.state)
            self.position = saved.step
        self.stage = stage
        self.started = time.process_time()

    def steps_done(self) -> int:
        return self.position

    def portion(self, most: int) -> list[dict[str, float]]:
        """Up to `most` updates, fewer where they take long; returns their metrics, in order."""
        rows, begin = [], time.monotonic()
        while len(rows) < most and (not rows or time.monotonic() - begin < PORTION_SECONDS):
            rows.append(self.learner.step(self.position))
            self.position += 1
        return rows

    def save(self) -> None:
        self.checkpoints.save(self.position, self.learner.weights(), self.learner.state(), self.run.identity())

    def cpu_seconds(self) -> float:
        """Since the last call."""
        now = time.process_time()
        spent, self.started = now - self.started, now
        return spent


def train_stage(run: Run, stage: str) -> None:
    """Trains a stage to its end, from wherever its last checkpoint is."""
    training = getattr(run.config, f"{stage}_training")
    resources = run.config.resources
    trainer = worker(
        StageTrainer, cpus=1, gpus=resources.trainer_gpus, name=f"{stage} trainer", threads=resources.trainer_threads
    ).remote(str(run.path), stage)
    step = result(trainer.steps_done.remote())
    metrics = MetricsWriter(run)
    metrics.truncate_after(stage, step)
    progress = Progress(stage, training.steps, done=step)
    with Clock(run, stage) as clock:
        while step < training.steps:
            until_save = training.save_every - step % training.save_every
            rows = result(trainer.portion.remote(min(until_save, training.steps - step)))
            for row in rows:
                metrics.write(stage, step, row)
                step += 1
            progress.update(step, rows[-1])
            clock.add_cpu(result(trainer.cpu_seconds.remote()))
            if step % training.save_every == 0 or step == training.steps:
                result(trainer.save.remote())
    progress.close()
    run.finish(stage, {"steps": step, **clock.record()})
