"""Which rollouts may be imagined, which are there, and which update is next: the bookkeeping of stage 4, without Ray.

Rollout number i belongs to update i // rollouts_per_step. The rollouts of update n are imagined with the weights of
version max(0, n - max_staleness), exactly: staleness is bounded because an update is admitted only once that version
exists, and every run gives the same numbers because no newer version is ever used instead.
"""

import heapq
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plan:
    """How much is to be done, and how far imagination may run ahead of the learner."""

    steps: int
    rollouts_per_step: int = 1
    max_staleness: int = 1
    save_every: int = 50

    @property
    def capacity(self) -> int:
        """Most rollouts that are running, or accepted and not yet part of an applied update. More workers idle."""
        return (self.max_staleness + 1) * self.rollouts_per_step

    def version(self, step: int) -> int:
        """The weights that the rollouts of an update are imagined with."""
        return max(0, step - self.max_staleness)

    def step_of(self, index: int) -> int:
        """The update that a rollout belongs to."""
        return index // self.rollouts_per_step

    def indices(self, step: int) -> range:
        return range(step * self.rollouts_per_step, (step + 1) * self.rollouts_per_step)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint follows update number `step`."""
        return (step + 1) % self.save_every == 0 or step + 1 == self.steps


@dataclass
class Schedule:
    """Where a run is. `updates` have been applied by the learner, those before `fed` have been handed to it."""

    plan: Plan
    updates: int = 0
    epoch: int = 0  # raised by every rewind; what was asked for in an earlier one is not wanted any more
    fed: int = 0
    admitted: int = 0
    waiting: list[int] = field(default_factory=list)  # a heap: the oldest rollout is asked for first
    arrived: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fed = self.admitted = self.updates

    @property
    def done(self) -> bool:
        return self.updates >= self.plan.steps

    @property
    def outstanding(self) -> int:
        """Updates that the learner was handed and has not reported."""
        return self.fed - self.updates

    def admit(self) -> None:
        """Lets in the updates whose weights exist by now."""
        while self.admitted < min(self.plan.steps, self.updates + self.plan.max_staleness + 1):
            for index in self.plan.indices(self.admitted):
                heapq.heappush(self.waiting, index)
            self.admitted += 1

    def take(self) -> int | None:
        """The oldest rollout that nobody imagines; None where all are under way."""
        return heapq.heappop(self.waiting) if self.waiting else None

    def give_back(self, index: int) -> None:
        """A rollout was lost or handed back: it is asked for again, before younger ones."""
        heapq.heappush(self.waiting, index)

    def arrive(self, index: int, rollout: Any) -> None:
        self.arrived[index] = rollout

    def feed(self) -> tuple[int, list[Any]] | None:
        """The next update and its rollouts, in order, once all are there; they are forgotten here."""
        step = self.fed
        if step >= self.plan.steps or any(index not in self.arrived for index in self.plan.indices(step)):
            return None
        self.fed += 1
        return step, [self.arrived.pop(index) for index in self.plan.indices(step)]

    def applied(self, step: int) -> None:
        """The learner has applied update number `step`, in order."""
        if step != self.updates:
            raise ValueError(f"update {step} was reported, {self.updates} is next")
        self.updates += 1

    def rewind(self, updates: int) -> None:
        """The learner is at `updates`, such as at its last checkpoint: everything after that is asked for again."""
        self.__init__(self.plan, updates, self.epoch + 1)
