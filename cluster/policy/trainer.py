"""The central learner of stage 4 in a process of its own: updates applied once each, committed by checkpoints.

It outlives the coordinator that feeds it, and comes back from its last checkpoint when its own process or node is
lost. Its calls may be repeated: an update that is not the next one changes nothing and tells where the learner is.
"""

import os
import time
from collections import deque
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cluster.models import load_policy
from cluster.policy.messages import Told
from cluster.registry.registry import Lease, open_registry
from cluster.run import Run
from cluster.telemetry import MetricsWriter
from cluster.utilisation import Utilisation
from cluster.variants import Variant
from dreamer4.errors import RunError
from dreamer4.types import Rollout, Weights
from learners.policy import PolicyLearner


class PolicyTrainer:
    """Holds the policy learner, its checkpoints, its log, and the weights that rollouts may still need."""

    def __init__(self, path: str, variant: Variant):
        self.run = Run.attach(Path(path))
        config = self.run.config
        head = load_policy(self.run, "bc")
        self.learner = PolicyLearner(head, config.dynamics.feature_width, config.policy, config.seed)
        self.utilisation = Utilisation(config.resources, self.learner.device, "float32")
        self.recent: deque[Weights] = deque(maxlen=config.policy.max_staleness + 1)
        self.checkpoints = self.run.checkpoints(variant.stage)
        self.stage = variant.stage
        self.config = {**self.run.identity(), "variant": asdict(variant)}
        self.registry = open_registry(self.run.path)
        self.token, self.cpu_told = 0, 0.0
        if self.checkpoints.latest() is None:
            self.recent.append(self._version())
        else:
            self._restore()
        self.metrics = MetricsWriter(self.run)
        self.metrics.truncate_after(self.stage, self.learner.updates)

    def _restore(self) -> None:
        saved = self.checkpoints.load(config=self.config)
        self.learner.restore(saved.weights, saved.state["learner"])
        for version in saved.state["recent"]:
            policy = {name: value.numpy() for name, value in version["policy"].items()}
            self.recent.append(Weights(version["version"], policy))

    def _version(self) -> Weights:
        return Weights(self.learner.updates, self.learner.policy_weights())

    def position(self, lease: Lease) -> Told:
        """How many updates are applied; from now on only the holder of this lease, or of a later one, is obeyed."""
        self._obey(lease)
        return self._told()

    def weights(self, version: int) -> Weights:
        """One of the last versions, what a loop that begins or rewinds starts its workers from.

        Raises:
            RunError: it is older, or not there yet.
        """
        for weights in self.recent:
            if weights.version == version:
                return weights
        there = [weights.version for weights in self.recent]
        raise RunError(f"weights {version} of '{self.run.path}' are not at hand, the learner has {there}")

    def step(self, lease: Lease, index: int, save: bool, *rollouts: Rollout) -> tuple[Told, Weights]:
        """Update number `index`, if it is the next one, and a checkpoint after it; and the newest weights.

        The metrics are written before the checkpoint, so a checkpoint never knows an update that the log doesn't.

        Raises:
            LeaseLostError: a later coordinator drives the run.
            NonFiniteError: nothing was updated.
        """
        begin = time.monotonic()
        self._obey(lease)
        if index != self.learner.updates:
            return self._told(), self.recent[-1]
        metrics = self.learner.step(index, list(rollouts))
        metrics |= self.utilisation.metrics(self.learner.estimate_flops(rollouts), time.monotonic() - begin)
        self.recent.append(self._version())
        self.metrics.write(self.stage, index, metrics)
        if save:
            self._save(lease)
        seconds = time.monotonic() - begin
        return self._told(applied=True, saved=save, metrics=metrics, seconds=seconds), self.recent[-1]

    def commit(self, lease: Lease) -> Told:
        """A checkpoint of what is applied, unless there is one."""
        self._obey(lease)
        wanted = self.learner.updates > (self.checkpoints.latest() or 0)
        if wanted:
            self._save(lease)
        return self._told(saved=wanted)

    def _save(self, lease: Lease) -> None:
        recent = [
            {"version": w.version, "policy": {k: torch.from_numpy(v) for k, v in w.policy.items()}} for w in self.recent
        ]
        state = {"learner": self.learner.state(), "recent": recent}
        permitted = partial(self.registry.check, lease)  # whoever lost the lease may not publish
        self.checkpoints.save(self.learner.updates, self.learner.weights(), state, self.config, permitted)

    def _obey(self, lease: Lease) -> None:
        if lease.token < self.token:
            self.registry.check(lease)
        self.token = max(self.token, lease.token)

    def _told(self, **facts: Any) -> Told:
        now = time.process_time()
        spent, self.cpu_told = now - self.cpu_told, now
        return Told(self.learner.updates, cpu_seconds=spent, process=os.getpid(), **facts)
