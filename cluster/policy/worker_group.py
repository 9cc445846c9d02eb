"""One imagination worker: a placement group of `shards` ranks that hold one world model together.

A worker lives or dies as a whole. It has no state that would be missed: a rollout is a function of its index and of
the weights, so whatever a lost worker was imagining is imagined again anywhere.
"""

from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef
from ray._raylet import PlacementGroupID  # pyright: ignore[reportAttributeAccessIssue]
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.placement import environment, give_way
from cluster.policy.messages import Cost, Request

PENDING, STARTING, READY, DRAINING = "pending", "starting", "ready", "draining"


@dataclass(frozen=True)
class WorkerSpec:
    """What every rank of a worker is and needs.

    `build(*arguments, rank, shards)` makes a rank, cheaply. Its methods: `endpoint()` gives the address where the
    ranks meet, asked of rank 0 where there are several; `load(endpoint)` loads the models; `rollout(index, version,
    weights)` returns what it cost and the rollout, of which only rank 0's counts.
    """

    build: type
    arguments: tuple[Any, ...]
    shards: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    threads: int = 1


class WorkerGroup:
    """The ranks of one worker, from their place in the cluster to their end. Methods never wait for Ray."""

    def __init__(self, spec: WorkerSpec, name: str):
        self.spec, self.name, self.state = spec, name, PENDING
        bundle = {"CPU": spec.cpus, **({"GPU": spec.gpus} if spec.gpus else {})}
        self.place = placement_group([bundle] * spec.shards, strategy="STRICT_PACK", name=name)
        self.ranks = [self._rank(rank) for rank in range(spec.shards)]
        for rank in self.ranks:
            give_way(rank)
        # One rank has nobody to meet. Ray holds the calls until the placement group has found its place.
        first = self.ranks[0].load.remote(None) if spec.shards == 1 else self.ranks[0].endpoint.remote()
        self.starting: set[ObjectRef] = {first}
        self.requests: dict[ObjectRef, tuple[Request, ObjectRef]] = {}
        self.others: set[ObjectRef] = set()  # answers of the ranks beside the first
        self.nodes: frozenset[str] = frozenset()

    def _rank(self, rank: int) -> Any:
        strategy = PlacementGroupSchedulingStrategy(self.place, placement_group_bundle_index=rank)
        options = {
            "num_cpus": self.spec.cpus,
            "num_gpus": self.spec.gpus,
            "max_restarts": 0,
            "scheduling_strategy": strategy,
            "runtime_env": environment(self.spec.threads),
        }
        build = ray.remote(self.spec.build)
        name = f"{self.name} rank {rank}"
        return build.options(**options, name=name).remote(*self.spec.arguments, rank, self.spec.shards)

    @property
    def refs(self) -> list[ObjectRef]:
        """All answers that are waited for."""
        return [*self.starting, *self.requests, *self.others]

    @property
    def short_name(self) -> str:
        """Its number, which tells it from the others of its pool."""
        return self.name.rpartition(" ")[2]

    def owns(self, ref: ObjectRef) -> bool:
        return ref in self.requests or ref in self.starting or ref in self.others

    @property
    def load(self) -> int:
        """Rollouts that were asked for."""
        return len(self.requests)

    def look(self) -> None:
        """Notices that the placement group has found its nodes."""
        if self.state == PENDING:
            table = placement_group_table(self.place)
            if table.get("state") == "CREATED":
                self.state = STARTING
                self.nodes = frozenset(table["bundles_to_node_id"].values())

    def submit(self, request: Request, weights: ObjectRef) -> None:
        """Asks all ranks for a rollout."""
        for number, rank in enumerate(self.ranks):
            cost, rollout = rank.rollout.options(num_returns=2).remote(request.index, request.version, weights)
            if number == 0:
                self.requests[cost] = request, rollout
            else:
                self.others.add(cost)

    def collect(self, ref: ObjectRef) -> tuple[Request, ObjectRef, Cost] | None:
        """Takes an answer that is there: a finished rollout, or None where it was another one.

        Raises:
            RayError: as the rank failed, or its process is gone.
        """
        answer = ray.get(ref)
        if ref in self.requests:
            request, rollout = self.requests.pop(ref)
            return request, rollout, answer
        if ref in self.others:
            self.others.discard(ref)
            return None
        self.starting.discard(ref)
        if isinstance(answer, tuple):  # where the ranks meet
            self.starting = {rank.load.remote(answer) for rank in self.ranks}
        elif not self.starting and self.state != DRAINING:
            self.look()
            self.state = READY
        return None

    def drain(self) -> None:
        """Gives it no more rollouts; it may go once those it has are done."""
        self.state = DRAINING

    @property
    def drained(self) -> bool:
        return self.state == DRAINING and not self.requests and not self.others

    def end(self) -> list[Request]:
        """Kills the ranks, gives their place back, and returns the requests that were not answered."""
        for rank in self.ranks:
            ray.kill(rank)
        remove_placement_group(self.place)
        handed_back = [request for request, _ in self.requests.values()]
        self.starting, self.requests, self.others = set(), {}, set()
        return handed_back


def remove_left_over(prefix: str) -> int:
    """Removes the placement groups, and with them the ranks, that a lost coordinator has left; returns how many."""
    left = [
        key
        for key, entry in placement_group_table().items()
        if entry["name"].startswith(prefix) and entry["state"] != "REMOVED"
    ]
    for key in left:
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(key))))
    return len(left)
