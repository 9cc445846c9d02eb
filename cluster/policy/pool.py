"""The imagination workers of a run: as many as are wanted, lost ones built anew, unwanted ones drained."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from cluster.placement import cause_of, mistake_behind, objects_lost
from cluster.policy.messages import Cost, Request, StaleWeightsError
from cluster.policy.worker_group import DRAINING, PENDING, READY, STARTING, WorkerGroup, WorkerSpec
from dreamer4.errors import RunError

IN_FLIGHT = 2  # rollouts per worker: one is imagined while the next one's arguments travel
LOOK_SECONDS = 0.5  # between looks at placement groups and nodes
FAILURES = 5  # errors of the code in a row, without any rollout between: it won't get better
DEATHS = 30  # lost processes in a row, more than the workers of a whole node


@dataclass(frozen=True)
class Arrived:
    """A finished rollout."""

    request: Request
    rollout: ObjectRef
    cost: Cost
    worker: str


@dataclass(frozen=True)
class Lost:
    """Requests that nobody answers any more: with a worker, or because its weights were lost (`stale`)."""

    requests: list[Request]
    worker: str
    reason: str
    stale: bool = False


class Pool:
    """Holds the workers of one run; never waits.

    Args:
        name: prefix of the workers' names; no other pool may use it at the same time.
        wanted: workers at first, see `resize`.
        timeout: seconds after which a rollout that isn't done means that its worker hangs.
        note: told of every worker that comes, goes, or changes its state.
        draining: gives the hex numbers of the nodes that will go away; workers there are replaced elsewhere.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        name: str,
        wanted: int,
        timeout: float,
        note: Callable[..., None],
        draining: Callable[[], set[str]],
    ):
        self.spec, self.name, self.wanted, self.timeout = spec, name, wanted, timeout
        self.note, self.draining = note, draining
        self.groups: list[WorkerGroup] = []
        self.leaving: set[str] = set()  # nodes, when it last looked
        self.made = self.lost = 0
        self.failures = self.deaths = 0  # in a row
        self.build_at = self.look_at = 0.0

    def resize(self, wanted: int) -> None:
        self.wanted = wanted

    @property
    def counts(self) -> Counter[str]:
        """How many workers are in which state."""
        return Counter(group.state for group in self.groups)

    @property
    def staying(self) -> list[WorkerGroup]:
        return [group for group in self.groups if group.state != DRAINING]

    @property
    def missing(self) -> int:
        """Workers that are wanted and don't imagine yet."""
        return max(0, self.wanted - self.counts[READY])

    def owners(self) -> dict[ObjectRef, WorkerGroup]:
        """All answers that are waited for, and of whom."""
        return {ref: group for group in self.groups for ref in group.refs}

    def places(self) -> list[WorkerGroup]:
        """The worker of every rollout that may be asked for now, in order: those with the least to do first."""
        ready = [group for group in self.groups if group.state == READY]
        return [group for load in range(IN_FLIGHT) for group in ready if group.load <= load]

    def idle_share(self) -> float:
        """Share of the workers that could imagine and have nothing to do."""
        ready = [group for group in self.groups if group.state == READY]
        return sum(group.load == 0 for group in ready) / len(ready) if ready else 0.0

    def collect(self, ref: ObjectRef, group: WorkerGroup) -> Arrived | Lost | None:
        """Takes an answer that is there, of a worker.

        Raises:
            DreamerError: a user's mistake that no other worker would escape, such as a missing checkpoint.
            RunError: workers fail one after the other.
        """
        if not group.owns(ref):  # ended meanwhile
            return None
        before = group.state
        try:
            done = group.collect(ref)
        except RayError as error:
            return self._failed(group, ref, error)
        if group.state != before:
            self.note("worker", worker=group.name, state=group.state)
        if done is None:
            return None
        self.failures = self.deaths = 0
        return Arrived(*done, group.short_name)

    def _failed(self, group: WorkerGroup, ref: ObjectRef, error: RayError) -> Lost:
        if mistake := mistake_behind(error):
            raise mistake from None
        stale = _stale(error)
        if stale and ref in group.requests and self.spec.shards == 1:
            request, _ = group.requests.pop(ref)
            return Lost([request], group.name, cause_of(error), stale=True)
        by_code = isinstance(error, RayTaskError)
        self.failures, self.deaths = self.failures + by_code, self.deaths + (not by_code)
        if self.failures >= FAILURES or self.deaths >= DEATHS:
            raise RunError(
                f"imagination workers failed {self.failures + self.deaths} times without a rollout in between, the "
                f"last one with {cause_of(error)}: see the logs of '{group.name}' in Ray's dashboard"
            ) from error
        return replace(self._lose(group, cause_of(error)), stale=stale)

    def _lose(self, group: WorkerGroup, reason: str) -> Lost:
        self.groups.remove(group)
        self.lost += 1
        self.build_at = time.monotonic() + min(60, 2 ** (self.failures + self.deaths - 1) / 2)
        self.note("worker", worker=group.name, state="lost", reason=reason)
        return Lost(group.end(), group.name, reason)

    def reconcile(self, now: float) -> list[Lost]:
        """Builds, drains and ends workers until they are as many as wanted; returns what hanging ones took along."""
        lost = []
        if now >= self.look_at:
            self.look_at = now + LOOK_SECONDS
            lost = [self._lose(group, f"no answer for {self.timeout:g} s") for group in self._hanging(now)]
            self._look()
        for group in [group for group in self.groups if group.drained]:
            self._end(group)
        while len(self.staying) > self.wanted:
            self._drain(min(self.staying, key=_worth), "fewer workers are wanted")
        while len(self.staying) < self.wanted and now >= self.build_at:
            self._build()
        return lost

    def _hanging(self, now: float) -> list[WorkerGroup]:
        return [
            group
            for group in self.groups
            if any(now - request.since > self.timeout for request, _ in group.requests.values())
        ]

    def _look(self) -> None:
        for group in self.groups:
            before = group.state
            group.look()
            if group.state != before:
                self.note("worker", worker=group.name, state=group.state, nodes=sorted(group.nodes))
        self.leaving = self.draining()
        for group in self.staying:
            if group.nodes & self.leaving:
                self._drain(group, "its node is going away")

    def _drain(self, group: WorkerGroup, reason: str) -> None:
        waits = group.state in (PENDING, STARTING)
        group.drain()
        self.note("worker", worker=group.name, state=DRAINING, reason=reason)
        if waits:
            self._end(group)

    def _end(self, group: WorkerGroup) -> None:
        self.groups.remove(group)
        group.end()
        self.note("worker", worker=group.name, state="ended")

    def _build(self) -> None:
        self.made += 1
        group = WorkerGroup(self.spec, f"{self.name} {self.made}")
        self.groups.append(group)
        self.note("worker", worker=group.name, state=PENDING)

    def close(self) -> None:
        """Ends all workers at once."""
        for group in list(self.groups):
            self._end(group)


def _stale(error: RayError) -> bool:
    """Whether the weights didn't reach a rank, or were others; the worker may be well."""
    return objects_lost(error) or (isinstance(error, RayTaskError) and isinstance(error.cause, StaleWeightsError))


def _worth(group: WorkerGroup) -> tuple[int, int]:
    """Who is drained first: workers that are not ready, then those with the least to do."""
    return [PENDING, STARTING, READY].index(group.state), group.load
