"""The paper's 20 Minecraft tasks as increments of the game's own counters (paper, appendix: tasks).

A counter in line t that is higher than in the line before happened on the way to frame t, so it is an event on arrival
at frame t, like a reward. Which counters the paper used it doesn't say: the table below is our reading of its task
names.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np

WOODS = ("oak", "spruce", "birch", "jungle", "acacia", "dark_oak", "crimson", "warped")
DEATHS = "minecraft.custom:minecraft.deaths"


def _counters(kind: str, *items: str) -> tuple[str, ...]:
    return tuple(f"minecraft.{kind}:minecraft.{item}" for item in items)


COUNTERS: dict[str, tuple[str, ...]] = {
    "mine_log": _counters("mine_block", *(f"{wood}_{'stem' if wood in WOODS[6:] else 'log'}" for wood in WOODS)),
    "mine_cobblestone": _counters("mine_block", "stone", "cobblestone"),  # a mined stone drops a cobblestone
    "mine_iron_ore": _counters("mine_block", "iron_ore"),
    "mine_coal": _counters("mine_block", "coal_ore"),
    "mine_diamond": _counters("mine_block", "diamond_ore"),
    "craft_planks": _counters("craft_item", *(f"{wood}_planks" for wood in WOODS)),
    "craft_stick": _counters("craft_item", "stick"),
    "craft_crafting_table": _counters("craft_item", "crafting_table"),
    "craft_furnace": _counters("craft_item", "furnace"),
    "craft_iron_ingot": _counters("craft_item", "iron_ingot"),
    "craft_wooden_pickaxe": _counters("craft_item", "wooden_pickaxe"),
    "craft_stone_pickaxe": _counters("craft_item", "stone_pickaxe"),
    "craft_iron_pickaxe": _counters("craft_item", "iron_pickaxe"),
    "open_crafting_table": _counters("custom", "interact_with_crafting_table"),
    "open_furnace": _counters("custom", "interact_with_furnace"),
    "place_crafting_table": _counters("use_item", "crafting_table"),
    "place_furnace": _counters("use_item", "furnace"),
    "use_wooden_pickaxe": _counters("use_item", "wooden_pickaxe"),
    "use_stone_pickaxe": _counters("use_item", "stone_pickaxe"),
    "use_iron_pickaxe": _counters("use_item", "iron_pickaxe"),
}
TASKS = tuple(COUNTERS)


@cache
def _columns() -> dict[str, int]:
    return {counter: TASKS.index(task) for task, counters in COUNTERS.items() for counter in counters}


def task_events(before: Mapping[str, int] | None, now: Mapping[str, int]) -> np.ndarray:
    """Bool `[20]`: the tasks of which something was accomplished between two ticks.

    Args:
        before: counters of the tick before; None at the first tick, whose counts are of an earlier segment.
    """
    events = np.zeros(len(TASKS), bool)
    if before is not None:
        for counter, column in _columns().items():
            events[column] |= now.get(counter, 0) > before.get(counter, 0)
    return events


def died(before: Mapping[str, int] | None, now: Mapping[str, int]) -> bool:
    """Whether the player died between two ticks; the recorder stops then (R16)."""
    return before is not None and now.get(DEATHS, 0) > before.get(DEATHS, 0)
