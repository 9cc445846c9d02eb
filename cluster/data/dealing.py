"""Shards of work dealt to actors, the next one to whoever is free; what a lost actor had in hand is done again."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.placement import result
from dreamer4.errors import RunError

LOSSES = 3  # actors that may be lost with one shard; more have a cause that won't go away


def deal(
    name: str,
    actors: Iterable[Any],
    build: Callable[[], Any],
    shards: Iterable[int],
    arguments: Callable[[int], tuple[Any, ...]] = lambda index: (),
) -> Iterator[tuple[int, Any]]:
    """Shard numbers and what `make(index, *arguments(index))` of an actor gave, in the order in which they are done.

    Shards are whole or not there, so whoever gets a lost one begins it again. The actors end with the last shard.

    Args:
        name: of the work, for messages.
        build: makes an actor that takes the place of a lost one.

    Raises:
        RunError: several actors were lost one after the other with the same shard.
    """
    idle, busy, lost = list(actors), {}, Counter[int]()
    waiting = list(shards)[::-1]
    try:
        while waiting or busy:
            while waiting and idle:
                actor, index = idle.pop(), waiting.pop()
                busy[actor.make.remote(index, *arguments(index))] = actor, index
            (finished,), _ = ray.wait(list(busy))
            actor, index = busy.pop(finished)
            try:
                made = result(finished)
            except RunError as error:
                lost[index] += 1
                if not isinstance(error.__cause__, RayError) or lost[index] > LOSSES:
                    raise
                print(f"\n{name}: shard {index} is begun again, its process was lost", file=sys.stderr, flush=True)
                waiting.append(index)
                idle.append(build())
                continue
            idle.append(actor)
            yield index, made
    finally:
        for actor in [*idle, *(actor for actor, _ in busy.values())]:
            ray.kill(actor)
