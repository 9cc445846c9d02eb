"""How many imagination workers a run should have, from two measured fractions of time.

* The learner starves: it has no update to do. More workers help, as long as none of them is idle.
* The workers starve: they may not run further ahead of the learner. Fewer workers do as well.

A pending worker is a pending placement group, which is what makes Ray's autoscaler start a node; a worker that is
given back leaves a node idle, and the autoscaler takes it away.
"""

from dataclasses import dataclass
from math import ceil

STARVING = 0.20  # of the time: more workers are wanted from here on
IDLE = 0.30  # of the workers' time: fewer are wanted from here on
CALM = 0.05  # the other side must be below this, so that a run that waits on both sides is left alone
GROWTH = 1.5  # at most, per decision


@dataclass
class Autoscaler:
    """Decides every `interval` seconds, between `least` and `most`; all times are of one monotonic clock.

    It grows by half and shrinks by one, because an idle worker is cheaper than a starving learner. It grows only after
    a whole interval without pending workers: one that has just joined has not yet shown what it does.
    """

    least: int
    most: int
    interval: float
    wanted: int
    due_at: float | None = None
    settled: bool = False  # no worker was pending at the last decision

    def due(self, now: float) -> bool:
        """Whether an interval is over: the fractions measured in it are then to be taken to `decide`."""
        if self.due_at is None:
            self.due_at = now + self.interval
        return now >= self.due_at

    def decide(self, now: float, learner_starves: float, workers_idle: float, pending: int) -> int:
        """How many workers are wanted from now on.

        Args:
            learner_starves: share of the interval in which the learner had nothing to do.
            workers_idle: share of the workers' time in which they were not allowed to imagine.
            pending: workers that are wanted and don't imagine yet.
        """
        self.due_at = now + self.interval
        settled, self.settled = self.settled, pending == 0
        if learner_starves > STARVING and workers_idle < CALM and settled and pending == 0:
            self.wanted = min(self.most, ceil(self.wanted * GROWTH))
        elif workers_idle > IDLE and learner_starves < CALM:
            self.wanted = max(self.least, self.wanted - 1)
        return self.wanted


class Fraction:
    """The share of time that something was so, weighted; reset by `take`."""

    def __init__(self) -> None:
        self.part = self.whole = 0.0

    def add(self, seconds: float, share: float, weight: float = 1.0) -> None:
        """`seconds` passed, in a `share` of which it was so."""
        self.part += seconds * weight * share
        self.whole += seconds * weight

    @property
    def value(self) -> float:
        return self.part / self.whole if self.whole else 0.0

    def take(self) -> float:
        value, self.part, self.whole = self.value, 0.0, 0.0
        return value
