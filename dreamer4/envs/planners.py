"""Scripted players for recordings: they know the state of the grid, and they slip, so that recordings are imperfect."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from minigrid.core.constants import DIR_TO_VEC
from minigrid.utils.baby_ai_bot import BabyAIBot, DisappearedBoxError

from dreamer4.envs.stages import STAGES, KeyDoorPlanner
from dreamer4.errors import ConfigError

LEFT, RIGHT, FORWARD = 0, 1, 2
Pose = tuple[int, int, int]  # x, y, direction


class Planner(Protocol):
    """Chooses the next action from the environment's own state, or none where it is lost; one object per episode."""

    def act(self, last_action: int | None) -> int | None: ...


class GoalPlanner:
    """Shortest way to the goal by breadth-first search over positions and directions.

    Args:
        careful: go around lava, and around the balls where they are now; otherwise as if there were none.
    """

    def __init__(self, env: gym.Env[Any, Any], careful: bool):
        self.grid_env: Any = env.unwrapped
        self.careful = careful

    def act(self, last_action: int | None) -> int:
        """The first action of the way, or a turn to the left where there is no way at the moment."""
        base = self.grid_env
        start: Pose = (int(base.agent_pos[0]), int(base.agent_pos[1]), int(base.agent_dir))
        queue, seen = deque([(start, LEFT)]), {start}
        while queue:
            pose, first = queue.popleft()
            item = base.grid.get(*pose[:2])
            if item is not None and item.type == "goal":
                return first
            for action, following in self._moves(pose):
                if following not in seen:
                    seen.add(following)
                    queue.append((following, action if pose == start else first))
        return LEFT

    def _moves(self, pose: Pose) -> list[tuple[int, Pose]]:
        x, y, direction = pose
        dx, dy = (int(d) for d in DIR_TO_VEC[direction])
        moves = [(LEFT, (x, y, (direction - 1) % 4)), (RIGHT, (x, y, (direction + 1) % 4))]
        if self._free(x + dx, y + dy):
            moves.insert(0, (FORWARD, (x + dx, y + dy, direction)))
        return moves

    def _free(self, x: int, y: int) -> bool:
        item = self.grid_env.grid.get(x, y)
        if item is not None and item.type in ("ball", "lava"):
            return not self.careful
        return item is None or item.can_overlap()


class _Plan(list):
    """The bot's stack of subgoals. After some slips the bot replaces two subgoals by each other for ever."""

    patience = 1000  # subgoals per action

    def append(self, subgoal: Any) -> None:
        self.patience -= 1
        if self.patience < 0:
            raise RecursionError("the bot goes in circles")
        super().append(subgoal)


class BotPlanner:
    """The bot that comes with the BabyAI levels. It may lose its way for good after a slip, such as an opened box."""

    def __init__(self, env: gym.Env[Any, Any]):
        self.bot = BabyAIBot(env.unwrapped)
        self.lost = False

    def act(self, last_action: int | None) -> int | None:
        if not self.lost:
            self.bot.stack = _Plan(self.bot.stack)
            try:
                return int(self.bot.replan(last_action))  # pyright: ignore[reportArgumentType]
            except (DisappearedBoxError, AssertionError, RecursionError):
                self.lost = True
        return None


@dataclass(frozen=True)
class Mixture:
    """A careful player in `careful_share` of the episodes, a careless one in the others, each with its slips.

    Levels of BabyAI are played by their bot in both cases, with the two rates of slips. In key-door-goal tasks a
    careless player does one stage of the three well and dawdles in the others; or it does key and door well and is lost
    in the goal's room. A player that is lost acts at random for the rest of the episode.
    """

    careful_share: float = 0.5
    careful_epsilon: float = 0.3  # probability of a uniform random action instead
    careless_epsilon: float = 0.1
    dawdling: int = 2  # full turns on the spot before a stage that the player is not good at
    lost_share: float = 0.0  # of the careless players of key-door-goal tasks: who don't know where the goal is


# Environments where nothing but walls, balls and lava is between the agent and the goal.
TO_THE_GOAL = ("Dynamic-Obstacles", "Empty", "FourRooms", "SimpleCrossing", "LavaCrossing", "LavaGap", "DistShift")


PlannerFactory = Callable[[gym.Env[Any, Any], bool, Mixture, np.random.Generator], Planner]


def planner_for(name: str) -> PlannerFactory:
    """Makes the planner of an environment, careful or not; what else it decides is drawn from the generator.

    Raises:
        ConfigError: nobody here can play it.
    """
    if name.startswith("BabyAI-"):
        return lambda env, careful, mixture, random: BotPlanner(env)
    if name.startswith("MiniGrid-DoorKey-"):
        return _key_door_planner
    if name.startswith(tuple(f"MiniGrid-{kind}" for kind in TO_THE_GOAL)):
        return lambda env, careful, mixture, random: GoalPlanner(env, careful)
    raise ConfigError(
        f"there is no scripted player for '{name}': use a BabyAI-* environment or a MiniGrid-* one of DoorKey, "
        f"{', '.join(TO_THE_GOAL)}, or write recordings with dreamer4.data.writer"
    )


def _key_door_planner(
    env: gym.Env[Any, Any], careful: bool, mixture: Mixture, random: np.random.Generator
) -> KeyDoorPlanner:
    if careful:
        return KeyDoorPlanner(env, STAGES, mixture.dawdling, random)
    good_at = (STAGES[random.integers(len(STAGES))],)
    lost = mixture.lost_share > 0 and random.random() < mixture.lost_share  # draws nothing where nobody can be
    return KeyDoorPlanner(env, STAGES[:2] if lost else good_at, mixture.dawdling, random, knows_goal=not lost)


class Demonstrator:
    """One episode of the mixture: who plays, and when they slip, is drawn from `random`."""

    def __init__(self, name: str, env: gym.Env[Any, Any], mixture: Mixture, random: np.random.Generator):
        self.random = random
        self.careful = bool(random.random() < mixture.careful_share)
        self.epsilon = mixture.careful_epsilon if self.careful else mixture.careless_epsilon
        self.planner = planner_for(name)(env, self.careful, mixture, random)
        self.actions = int(env.action_space.n)  # type: ignore[attr-defined]
        self.last_action: int | None = None

    @property
    def source(self) -> str:
        player = "bot" if isinstance(self.planner, BotPlanner) else "careful" if self.careful else "careless"
        if isinstance(self.planner, KeyDoorPlanner):
            player = f"good at {', '.join(self.planner.good_at)}"
        return f"{player}, epsilon {self.epsilon:g}"

    def act(self) -> int:
        """The action that is played at the environment's present state."""
        planned = self.planner.act(self.last_action)
        slips = self.random.random() < self.epsilon
        self.last_action = int(self.random.integers(self.actions)) if slips or planned is None else planned
        return self.last_action
