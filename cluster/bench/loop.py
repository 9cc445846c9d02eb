"""`dreamer4 bench loop`: what the loop of stage 4 costs, with stand-ins of known cost and with the real models.

* stand-ins: how busy a central learner is kept by 1 to 64 workers, and what a rollout costs the driver;
* weights: seconds until all workers have a new version of 1, 10 and 100 MB;
* real models of laptop size: imagined frames per second with one worker in Ray, as a ratio to the same loop in plain
  Python, in alternating turns of one run.

The driver is this process, with the very loop that the coordinator holds.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray
from ray.experimental import get_object_locations

from cluster.bench.stand_in import Costs, StandInLearner, StandInRank
from cluster.policy.autoscale import Autoscaler
from cluster.policy.ledger import Ledger
from cluster.policy.loop import ImaginationLoop
from cluster.policy.pool import Pool
from cluster.policy.schedule import Plan
from cluster.policy.worker_group import READY, WorkerSpec

WORKERS = (1, 4, 16, 64)
WEIGHTS_MB = (1, 10, 100)
SMALL = 0.001  # CPUs that a stand-in asks for: it sleeps


@dataclass(frozen=True)
class Scaling:
    """One run with stand-ins."""

    workers: int
    rollouts: int
    rollouts_per_s: float
    learner_busy: float  # share of the time, from the first update to the last
    driver_ms_per_rollout: float  # CPU of the whole driver process


def stand_in_run(workers: int, updates: int, costs: Costs, folder: Path) -> Scaling:
    """As many rollouts per update as workers, imagined while the learner computes the update before."""
    plan = Plan(updates, rollouts_per_step=workers, max_staleness=1, save_every=updates)
    learner: Any = ray.remote(StandInLearner).options(num_cpus=SMALL).remote(costs, folder / str(workers))
    spec = WorkerSpec(StandInRank, (costs,), cpus=SMALL)
    ledger = Ledger(folder, f"stand-in {workers}")
    pool = Pool(spec, f"bench {folder.name} {workers}", workers, 600, ledger.note, set)
    marks: list[tuple[float, float, int, float]] = []  # of each applied update: time, CPU, rollouts, learner's seconds

    def look() -> bool:
        meter = loop.throughput
        if loop.schedule.updates > len(marks):
            marks.append((time.monotonic(), time.process_time(), meter.rollouts, meter.learner_seconds))
        return False

    loop = ImaginationLoop(plan, pool, learner, 0, ledger, Autoscaler(workers, workers, 1e9, workers), stopped=look)
    try:
        # All workers are up before the clock starts: their start is not the loop's cost.
        while pool.counts[READY] < workers:
            pool.reconcile(time.monotonic())
            loop.wait()
        loop.run()
    finally:
        pool.close()
        ray.kill(learner)
    (begin, cpu, rollouts, busy), (end, cpu_end, rollouts_end, busy_end) = marks[0], marks[-1]
    count = rollouts_end - rollouts
    return Scaling(
        workers,
        count,
        count / (end - begin),
        (busy_end - busy) / (end - begin),
        1000 * (cpu_end - cpu) / count,
    )


class Receiver:
    """Fetches weights as a worker does."""

    def receive(self, weights: np.ndarray) -> float:
        return float(weights[0])


def broadcast_seconds(megabytes: int, workers: int, repeats: int = 5) -> float:
    """Median seconds from a put to the last of the workers having the array."""
    receivers: list[Any] = [ray.remote(Receiver).options(num_cpus=SMALL).remote() for _ in range(workers)]
    ray.get([receiver.receive.remote(np.zeros(1)) for receiver in receivers])
    seconds = []
    for number in range(repeats):
        array = np.full(megabytes * 125_000, float(number))
        begin = time.monotonic()
        reference = ray.put(array)
        ray.get([receiver.receive.remote(reference) for receiver in receivers])
        seconds.append(time.monotonic() - begin)
        del reference
    for receiver in receivers:
        ray.kill(receiver)
    return median(seconds)


def stored_bytes(references: Sequence[Any]) -> int:
    """Bytes that objects take in the store, with everything that pickling adds."""
    places = get_object_locations(list(references))
    return sum(place["object_size"] for place in places.values())


def spilled_bytes() -> int:
    """Written to disk for want of memory, over the life of this Ray."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return int(get_memory_info_reply(state).store_stats.spilled_bytes_total)
