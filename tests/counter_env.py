"""An environment whose picture is the number of the step, and a player for it."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from recordings import stamped

from dreamer4.data.importers.record import RecordEpisodes


class Counter(gymnasium.Env):
    """Shows the number of the step; ends after `length` steps, by itself or at a limit."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, length: int = 70, truncates: bool = False, space: gymnasium.Space | None = None):
        self.render_mode, self.length, self.truncates = "rgb_array", length, truncates
        self.observation_space, self.action_space = spaces.Discrete(1000), space or spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.now = 0
        return 0, {}

    def step(self, action: Any):
        self.now += 1
        over = self.now == self.length
        return self.now, self.now / 10, over and not self.truncates, over and self.truncates, {"success": over}

    def render(self) -> np.ndarray:
        return stamped(self.now)


def play(env: gymnasium.Env) -> list[Any]:
    env.reset(seed=1)
    acts, over = [], False
    while not over:
        acts.append(env.action_space.sample())
        _, _, terminated, truncated, _ = env.step(acts[-1])
        over = terminated or truncated
    return acts


def play_counter(folder: Path) -> None:
    """One short recorded episode."""
    play(RecordEpisodes(Counter(6), folder))
