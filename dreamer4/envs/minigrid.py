"""Farama's minigrid as pixels of the whole grid, 8 per tile, and the way back from pixels to tiles.

The agent's field of view is not highlighted: it would repaint most of the frame whenever the agent turns, and the
model would have to spend its capacity on that.

minigrid's picture of the whole grid does not show what the agent carries. Here it lies in the upper left corner, which
is a wall in every one of these environments and can't be reached.
"""

import contextlib
import io
from collections.abc import Collection
from functools import cache
from typing import Any

import gymnasium as gym
import minigrid  # noqa: F401  registers its environments
import numpy as np
from minigrid.core.constants import COLOR_NAMES
from minigrid.core.grid import Grid
from minigrid.core.world_object import Ball, Box, Door, Floor, Goal, Key, Lava, Wall, WorldObj

TILE = 8  # pixels

# minigrid's key-door-goal under a tight limit of steps, instead of 250 and 360. The longest of all shortest ways takes
# 14 and 19 steps: who knows the way has time enough, who dawdles has not. The clock is not visible. It need not be:
# where nothing but the agent moves, the shortest way is the best one whatever the time; and who is stopped has not
# arrived, so recordings end there without a terminal frame.
for _size, _steps in ((5, 25), (6, 28)):
    gym.register(
        f"MiniGrid-DoorKey-{_size}x{_size}-Hurry-v0",
        entry_point="minigrid.envs:DoorKeyEnv",
        kwargs={"size": _size, "max_steps": _steps},
    )


@cache
def minigrid_names() -> frozenset[str]:
    """All environments that the minigrid package has registered."""
    return frozenset(name for name in gym.registry if name.startswith(("MiniGrid-", "BabyAI-")))


class GridPixels(gym.Wrapper[np.ndarray, int, Any, int]):
    """Observations are the rendered grid, uint8 `[8 height, 8 width, 3]`."""

    def __init__(self, env: gym.Env[Any, int]):
        super().__init__(env)
        base: Any = env.unwrapped
        shape = (base.height * TILE, base.width * TILE, 3)
        self.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)

    def _frame(self) -> np.ndarray:
        """What `get_frame(highlight=False)` draws, without its search for the visible cells, which costs most of it."""
        base: Any = self.env.unwrapped
        assert self.observation_space.shape is not None
        frame = np.empty(self.observation_space.shape, np.uint8)
        agent = int(base.agent_pos[1]) * base.width + int(base.agent_pos[0])
        for cell, item in enumerate(base.grid.grid):
            y, x = cell // base.width * TILE, cell % base.width * TILE
            direction = base.agent_dir if cell == agent else None
            frame[y : y + TILE, x : x + TILE] = Grid.render_tile(item, direction, tile_size=TILE)
        if base.carrying is not None:
            frame[:TILE, :TILE] = Grid.render_tile(base.carrying, tile_size=TILE)
        return frame

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        with contextlib.redirect_stdout(io.StringIO()):  # levels print every layout that they reject
            _, info = self.env.reset(seed=seed, options=options)
        return self._frame(), info

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        _, reward, terminated, truncated, info = self.env.step(action)
        return self._frame(), float(reward), terminated, truncated, info


def make_minigrid(name: str) -> GridPixels:
    """An environment of the minigrid package, without gymnasium's checks of every step."""
    return GridPixels(gym.make(name, disable_env_checker=True))


Tile = tuple[str, int]  # what lies there, and the agent's direction or -1


def _objects() -> list[tuple[str, WorldObj | None]]:
    objects: list[tuple[str, WorldObj | None]] = [("empty", None), ("wall", Wall()), ("goal", Goal()), ("lava", Lava())]
    for color in COLOR_NAMES:
        objects += [(f"{color} ball", Ball(color)), (f"{color} key", Key(color)), (f"{color} box", Box(color))]
        objects += [(f"{color} door", Door(color)), (f"{color} open door", Door(color, is_open=True))]
        objects += [(f"{color} locked door", Door(color, is_locked=True)), (f"{color} floor", Floor(color))]
    return objects


@cache
def _tiles(among: frozenset[str] | None) -> tuple[list[Tile], np.ndarray]:
    """The tiles that are told apart, and their pixels `[n, 192]`."""
    drawn: list[tuple[Tile, np.ndarray]] = []
    for name, item in _objects():
        drawn.append(((name, -1), Grid.render_tile(item, tile_size=TILE)))
        if item is None or item.can_overlap():
            agent = "agent" if item is None else f"agent on {name}"
            drawn += [((agent, d), Grid.render_tile(item, agent_dir=d, tile_size=TILE)) for d in range(4)]
    drawn = [(tile, pixels) for tile, pixels in drawn if among is None or tile[0] in among]
    return [tile for tile, _ in drawn], np.stack([pixels.reshape(-1) for _, pixels in drawn]).astype(np.float32)


def _distances(frame_HWC: np.ndarray, among: Collection[str] | None) -> tuple[list[Tile], np.ndarray]:
    """The known tiles, and the squared error `[rows, columns, n]` of every tile of a frame to each of them."""
    names, known = _tiles(None if among is None else frozenset(among))
    rows, columns = frame_HWC.shape[0] // TILE, frame_HWC.shape[1] // TILE
    tiles = frame_HWC.astype(np.float32).reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2)
    flat = tiles.reshape(rows, columns, -1)
    return names, (flat**2).sum(-1, keepdims=True) - 2 * flat @ known.T + (known**2).sum(-1)


def classify(frame_HWC: np.ndarray, among: Collection[str] | None = None) -> list[list[Tile]]:
    """Rows of tiles of a frame, real or imagined: each the nearest in squared error.

    Args:
        frame_HWC: uint8, or float in [0, 255].
        among: names of the tiles that may occur, such as all that real frames show; by default all of minigrid's.
            The agent is called "agent", or "agent on goal" and the like.
    """
    names, distance = _distances(frame_HWC, among)
    return [[names[best] for best in row] for row in distance.argmin(axis=-1)]


def agent_cell(frame_HWC: np.ndarray, among: Collection[str] | None = None) -> tuple[int, int] | None:
    """Row and column of the agent: the tile that is nearer to a picture of the agent than to any other, and most so."""
    names, distance = _distances(frame_HWC, among)
    is_agent = np.array([name.startswith("agent") for name, _ in names])
    margin = distance[..., is_agent].min(axis=-1) - distance[..., ~is_agent].min(axis=-1)
    row, column = np.unravel_index(margin.argmin(), margin.shape)
    return (int(row), int(column)) if margin[row, column] < 0 else None


def count(frame_HWC: np.ndarray, kind: str, among: Collection[str] | None = None) -> int:
    """How many tiles hold something whose name ends so, such as "ball"."""
    return sum(name.endswith(kind) for row in classify(frame_HWC, among) for name, _ in row)
