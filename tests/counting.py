"""An actor that counts, and what a driver asks about it and about the nodes; other processes import it from here."""

import os
import time

import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from cluster.nodes import draining_nodes


@ray.remote(num_cpus=1)
class Counter:
    """Knows where it is and how often it was asked."""

    def __init__(self) -> None:
        self.count = 0

    def add(self) -> tuple[str, int, int]:
        """(node, process, count)"""
        self.count += 1
        return ray.get_runtime_context().get_node_id(), os.getpid(), self.count

    def draining(self) -> set[str]:
        return draining_nodes()


def place(name: str, resource: str) -> None:
    """A detached counter on the node that has `resource`."""
    Counter.options(name=name, namespace="test", lifetime="detached", resources={resource: 1}).remote()


def add(name: str) -> tuple[str, int, int]:
    return ray.get(ray.get_actor(name, namespace="test").add.remote(), timeout=60)


def draining(name: str) -> tuple[set[str], set[str]]:
    """What the driver sees, and what the actor does."""
    return draining_nodes(), ray.get(ray.get_actor(name, namespace="test").draining.remote(), timeout=60)


def dies(name: str) -> bool:
    """Whether a counter is gone within a minute; before that it is only out of reach."""
    counter, deadline = ray.get_actor(name, namespace="test"), time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            ray.get(counter.add.remote(), timeout=60)
        except RayActorError as error:
            if type(error).__name__ == "ActorDiedError":
                return True
        time.sleep(0.2)
    return False


def nodes() -> set[str]:
    """All that are alive, with the head."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


groups: list[PlacementGroup] = []  # of the driver's process


def reserve(bundles: list[dict[str, float]]) -> None:
    """Asks for a placement group on one node."""
    groups.append(placement_group(bundles, strategy="STRICT_PACK"))


def reserved() -> bool:
    return all(group.wait(0) for group in groups)


def free() -> None:
    while groups:
        remove_placement_group(groups.pop())
