"""The scripted player of key-door-goal tasks: good at one stage of three, so that no recording is good throughout.

It begins the other two by turning on the spot, either way, twice around or as often as it is told. All three kinds of
player together show every stage done well, but never in one episode. Who imitates them, or the best of them, or what
most of them do, dawdles as well; who puts the good parts together need not. There may be others who are good at the
first two stages and lost beyond the door: they show what is there, and seldom how the goal is reached.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from minigrid.core.constants import DIR_TO_VEC

LEFT, RIGHT, FORWARD, PICKUP, TOGGLE = 0, 1, 2, 3, 5
STAGES = ("key", "door", "goal")
Pose = tuple[int, int, int]  # x, y, direction


def step_ahead(pose: Pose) -> tuple[int, int]:
    """The cell that the agent looks at."""
    dx, dy = DIR_TO_VEC[pose[2]]
    return pose[0] + int(dx), pose[1] + int(dy)


class KeyDoorPlanner:
    """Fetches the key, opens the door, goes to the goal, by breadth-first search.

    Args:
        good_at: the stages that are done without dawdling.
        dawdling: full turns at the beginning of every other stage.
        random: decides, for each stage, which way they go.
        knows_goal: otherwise the player is lost in the goal's room.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        good_at: tuple[str, ...],
        dawdling: int,
        random: np.random.Generator,
        knows_goal: bool = True,
    ):
        self.base: Any = env.unwrapped
        self.good_at, self.knows_goal = good_at, knows_goal
        self.way = {stage: int(random.choice([LEFT, RIGHT])) for stage in STAGES}
        self.turns = {stage: 0 if stage in good_at else 4 * dawdling for stage in STAGES}  # quarters, still to be made

    def stage(self) -> str:
        """What is to be done now: a dropped key has to be fetched again, as long as the door is locked."""
        door = self._find("door")
        if door.is_open:
            return "goal"
        return "door" if self.base.carrying is not None or not door.is_locked else "key"

    def act(self, last_action: int | None) -> int | None:
        """The next action, or none where the player is lost or there is no way, as past a key dropped in the door."""
        stage, pose = self.stage(), self._pose()
        if stage == "goal" and not self.knows_goal and pose[0] > self._find("door").init_pos[0]:
            return None
        if self.turns[stage]:
            self.turns[stage] -= 1
            return self.way[stage]
        if stage == "goal":
            return self._towards(lambda at: self._is(at[:2], "goal"))
        if self._is(step_ahead(pose), stage):
            return PICKUP if stage == "key" else TOGGLE
        return self._towards(lambda at: self._is(step_ahead(at), stage))

    def _pose(self) -> Pose:
        return (int(self.base.agent_pos[0]), int(self.base.agent_pos[1]), int(self.base.agent_dir))

    def _find(self, kind: str) -> Any:
        return next(item for item in self.base.grid.grid if item is not None and item.type == kind)

    def _is(self, cell: tuple[int, int], kind: str) -> bool:
        item = self.base.grid.get(*cell)
        return item is not None and item.type == kind

    def _walk(self) -> Iterator[tuple[Pose, int]]:
        """All poses in reach, the nearest first, with the first action of the way there."""
        start = self._pose()
        queue, seen = deque([(start, LEFT)]), {start}
        while queue:
            pose, first = queue.popleft()
            yield pose, first
            x, y, direction = pose
            moves = [(LEFT, (x, y, (direction - 1) % 4)), (RIGHT, (x, y, (direction + 1) % 4))]
            ahead = step_ahead(pose)
            item = self.base.grid.get(*ahead)
            if item is None or item.can_overlap():
                moves.insert(0, (FORWARD, (*ahead, direction)))
            for action, following in moves:
                if following not in seen:
                    seen.add(following)
                    queue.append((following, action if pose == start else first))

    def _towards(self, there: Callable[[Pose], bool]) -> int | None:
        return next((first for pose, first in self._walk() if there(pose)), None)
