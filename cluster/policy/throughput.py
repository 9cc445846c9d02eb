"""What a loop measures of itself: imagined frames per second, who waits for whom, how old things are."""

import time
from collections import Counter, deque
from collections.abc import Collection
from typing import Any

from cluster.policy.autoscale import Fraction
from cluster.policy.messages import Cost


class Throughput:
    """Sums since the start, and rates since the last `row`."""

    def __init__(self, now: float | None = None):
        self.last = self.shown = time.monotonic() if now is None else now
        self.state = False, 0.0, 0
        self.frames = self.rollouts = self.bytes = 0
        self.busy_seconds = self.cpu_seconds = self.learner_seconds = 0.0
        self.learner_starves, self.workers_idle = Fraction(), Fraction()  # since the last decision on workers
        self.starved, self.idle = Fraction(), Fraction()  # since the last row
        self.whole = Fraction()  # of the learner, since the start
        self.recent: Counter[str] = Counter()
        self.by_worker: Counter[str] = Counter()  # frames since the last row
        self.applied = self.last  # when an update was
        self.lags: deque[int] = deque(maxlen=1000)  # updates between a rollout's weights and its use
        self.delays: deque[float] = deque(maxlen=1000)  # seconds from a request to its rollout

    def tick(self, now: float, learner_busy: bool, idle_share: float, workers: int) -> None:
        """Time has passed, spent as the last call said; from now on things are like this."""
        seconds, self.last = now - self.last, now
        was_busy, was_idle, were = self.state
        for fraction in (self.learner_starves, self.starved, self.whole):
            fraction.add(seconds, float(not was_busy))
        for fraction in (self.workers_idle, self.idle):
            fraction.add(seconds, was_idle, were)
        self.state = learner_busy, idle_share, workers

    def rollout(self, cost: Cost, delay: float, lag: int, worker: str) -> None:
        """A rollout arrived, `delay` seconds after its request, for an update `lag` versions after its weights'."""
        self.frames += cost.frames
        self.rollouts += 1
        self.bytes += cost.bytes
        self.busy_seconds += cost.seconds
        self.cpu_seconds += cost.cpu_seconds
        self.recent["frames"] += cost.frames
        self.by_worker[worker] += cost.frames
        self.recent["rollouts"] += 1
        self.delays.append(delay)
        self.lags.append(lag)

    def learner(self, seconds: float, cpu_seconds: float) -> None:
        self.learner_seconds += seconds
        self.cpu_seconds += cpu_seconds
        self.recent["updates"] += 1
        self.applied = self.last

    def due(self, now: float, seconds: float) -> bool:
        return now - self.shown >= seconds

    def row(self, now: float, workers: Collection[str]) -> dict[str, Any]:
        """Rates since the last row; they begin anew.

        Args:
            workers: names of those that are ready.
        """
        seconds = max(now - self.shown, 1e-9)
        row = {
            "frames_per_s": self.recent["frames"] / seconds,
            "frames_per_s_per_worker": self.recent["frames"] / seconds / max(1, len(workers)),
            "worker_frames_per_s": {name: self.by_worker[name] / seconds for name in workers},
            "rollouts_per_s": self.recent["rollouts"] / seconds,
            "updates_per_s": self.recent["updates"] / seconds,
            "since_update_s": now - self.applied,
            "learner_starves": self.starved.take(),
            "workers_idle": self.idle.take(),
            "rollout_delay_s": sum(self.delays) / len(self.delays) if self.delays else 0.0,
            "staleness": sum(self.lags) / len(self.lags) if self.lags else 0.0,
            "imagined_frames": self.frames,
            "store_bytes": self.bytes,
        }
        self.recent.clear()
        self.by_worker.clear()
        self.delays.clear()
        self.lags.clear()
        self.shown = now
        return row
