"""Workers and a learner of known cost, for measuring the loop alone and for breaking it in tests. No torch in here.

They compute something real: the learner's state depends on every rollout, its order and its weights, so two runs that
end with equal states have done the same updates with the same rollouts.
"""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.policy.messages import Cost, StaleWeightsError, Told
from cluster.policy.schedule import Plan
from dreamer4.files import replacing


@dataclass(frozen=True)
class StandInWeights:
    version: int
    state: np.ndarray  # float64


@dataclass(frozen=True)
class StandInRollout:
    index: int
    version: int
    features: np.ndarray  # float32, the payload


@dataclass(frozen=True)
class Costs:
    """What the stand-ins cost."""

    rollout_seconds: float = 0.0
    update_seconds: float = 0.0
    later_from: int | None = None  # update from which on `later_seconds` hold instead
    later_seconds: float = 0.0
    frames: int = 512  # of a rollout
    frame_bytes: int = 300
    weight_bytes: int = 1000


class StandInRank:
    """Imagines a rollout: a function of its index and of the weights."""

    def __init__(self, costs: Costs, rank: int = 0, shards: int = 1):
        self.costs, self.rank, self.told = costs, rank, 0.0

    def endpoint(self) -> tuple[str, int]:
        return "nowhere", 0

    def load(self, endpoint: tuple[str, int] | None) -> None: ...

    def rollout(self, index: int, version: int, weights: StandInWeights) -> tuple[Cost, StandInRollout]:
        StaleWeightsError.check(index, version, weights.version)
        begin = time.monotonic()
        first = np.random.default_rng(index).normal() + weights.state[0]
        features = np.full(self.costs.frames * self.costs.frame_bytes // 4, first, np.float32)
        time.sleep(max(0.0, self.costs.rollout_seconds - (time.monotonic() - begin)))
        cpu = time.process_time()
        spent, self.told = cpu - self.told, cpu
        cost = Cost(self.costs.frames, time.monotonic() - begin, spent, features.nbytes)
        return cost, StandInRollout(index, version, features)


class StandInLearner:
    """A state that rollouts change one after the other; checkpoints in a folder.

    Args:
        keep: versions of the weights that rollouts may still need.
    """

    def __init__(self, costs: Costs, folder: Path | None = None, keep: int = 2):
        self.costs, self.keep = costs, keep
        self.path = None if folder is None else Path(folder) / "stand-in.npz"
        self.updates, self.token, self.told = 0, -1, 0.0
        self.state = np.zeros(max(1, costs.weight_bytes // 8))
        self.recent = {0: self.state.copy()}
        if self.path is not None and self.path.exists():
            with np.load(self.path) as saved:
                self.recent = {int(name): saved[name] for name in saved.files}
            self.updates = max(self.recent)
            self.state = self.recent[self.updates].copy()

    def position(self, token: int) -> Told:
        self._obey(token)
        return self._told()

    def weights(self, version: int) -> StandInWeights:
        return StandInWeights(version, self.recent[version])

    def step(self, token: int, index: int, save: bool, *rollouts: StandInRollout) -> tuple[Told, StandInWeights]:
        self._obey(token)
        begin = time.monotonic()
        applied = index == self.updates
        if applied:
            assert [r.index for r in rollouts] == sorted({r.index for r in rollouts}), "each rollout once, in order"
            for rollout in rollouts:
                self.state = np.tanh(0.7 * self.state + rollout.features[0] + 0.01 * rollout.version)
            self.updates += 1
            self.recent[self.updates] = self.state.copy()
            for version in sorted(self.recent)[: -self.keep]:
                del self.recent[version]
            time.sleep(max(0.0, self._seconds(index) - (time.monotonic() - begin)))
            if save:
                self._save()
        told = self._told(applied=applied, saved=applied and save, seconds=time.monotonic() - begin)
        return told, self.weights(self.updates)

    def commit(self, token: int) -> Told:
        self._obey(token)
        self._save()
        return self._told(saved=True)

    def final(self) -> np.ndarray:
        return self.state

    def _seconds(self, index: int) -> float:
        costs = self.costs
        later = costs.later_from is not None and index >= costs.later_from
        return costs.later_seconds if later else costs.update_seconds

    def _obey(self, token: int) -> None:
        assert token >= self.token, "an older coordinator"
        self.token = token

    def _save(self) -> None:
        if self.path is not None:
            with replacing(self.path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **{str(version): state for version, state in self.recent.items()})  # type: ignore[arg-type]

    def _told(self, **facts: Any) -> Told:
        now = time.process_time()
        spent, self.told = now - self.told, now
        return Told(self.updates, cpu_seconds=spent, process=os.getpid(), **facts)


def plain_loop(plan: Plan, rank: StandInRank, learner: StandInLearner) -> Iterable[int]:
    """The same updates in one process, one after the other: what any distributed run has to equal."""
    versions = {0: learner.weights(0)}
    for step in range(plan.steps):
        weights = versions[plan.version(step)]
        rollouts = [rank.rollout(index, weights.version, weights)[1] for index in plan.indices(step)]
        _, versions[step + 1] = learner.step(0, step, False, *rollouts)
        versions.pop(plan.version(step + 1) - 1, None)
        yield step
