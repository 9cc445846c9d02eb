"""A made-up environment that shows in its pixels what was done to it, to test who is told what, and when."""

from typing import Any

import gymnasium as gym
import numpy as np

FRAME = (10, 8, 3)
ACTIONS = 3


class EchoEnv(gym.Env[np.ndarray, int]):
    """Pixel [0, 0] of a frame holds the last action + 1 (0 at first), [0, 1] the step, [0, 2] the seed % 256.

    An episode lasts 1 + seed % 5 steps. Its rewards are the actions - 1, so it succeeds if the last action is 2. Seeds
    that 7 divides end by truncation. A step after the end is an error, as it should be for all environments.
    """

    observation_space = gym.spaces.Box(0, 255, FRAME, np.uint8)
    action_space = gym.spaces.Discrete(ACTIONS)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.seed, self.steps, self.last = seed or 0, 0, -1
        self.over = False
        return self._frame(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert not self.over, "a step after the end"
        assert isinstance(action, int)
        self.last, self.steps = action, self.steps + 1
        self.over = self.steps == 1 + self.seed % 5
        cut = self.seed % 7 == 0
        return self._frame(), float(action - 1), self.over and not cut, self.over and cut, {}

    def _frame(self) -> np.ndarray:
        frame = np.zeros(FRAME, np.uint8)
        frame[0, :, 0] = self.last + 1, self.steps, self.seed % 256, 0, 0, 0, 0, 0
        frame[1:] = 50 * (self.last + 1)
        return frame


def echoed(frames: np.ndarray) -> np.ndarray:
    """The last actions that frames `[..., H, W, C]` show; -1 where there was none."""
    return frames[..., 0, 0, 0].astype(int) - 1
