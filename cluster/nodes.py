"""What the connected Ray says about its nodes."""

from typing import Any

import ray
from ray._private.state import actors, state


def draining_nodes() -> set[str]:
    """Ids, in hex, of living nodes that were told that they will be taken away.

    Works in a driver and in an actor, wherever `ray.init` was called; one short request to the head. The notice comes
    from `ray drain-node`, from a cloud's spot notice, from the autoscaler, and from SIGTERM on `ray start --block`.
    """
    return set(state.get_draining_nodes())


def living_nodes() -> int:
    """How many nodes the cluster has, the head included."""
    return sum(node["Alive"] for node in ray.nodes())


def node_of(actor: Any) -> str:
    """Hex id of the node that an actor is on, or was on when it was last alive."""
    return actors(actor._actor_id.hex())["Address"]["NodeID"]
