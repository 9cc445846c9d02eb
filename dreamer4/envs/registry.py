"""Environments by name, all with one face: uint8 pixels in, one action row out."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np

from dreamer4.actions import ActionSpace
from dreamer4.envs.minigrid import make_minigrid, minigrid_names
from dreamer4.errors import ConfigError, nearest


@dataclass(frozen=True)
class EnvSpec:
    """What a model needs to know of an environment."""

    name: str
    frame_shape: tuple[int, int, int]  # H, W, C
    actions: ActionSpace
    tasks: tuple[str, ...]


def playable(name: str) -> bool:
    """Whether there is an environment of this name; recordings may come from where we can't play."""
    return name in minigrid_names()


def make(name: str) -> gym.Env[np.ndarray, int]:
    """An environment whose observations are uint8 `[H, W, 3]` frames.

    Raises:
        ConfigError: there is no such environment; the nearest name is suggested.
    """
    if not playable(name):
        raise ConfigError(f"unknown environment '{name}'{_nearest(name)}")
    return make_minigrid(name)


def _nearest(name: str) -> str:
    suggestion = nearest(name, minigrid_names())
    return suggestion if "mean" in suggestion else "; any MiniGrid-* or BabyAI-* environment of the minigrid package"


@cache
def spec(name: str) -> EnvSpec:
    """Frame size, actions and tasks of an environment; makes it once to look.

    Raises:
        ConfigError: there is no such environment.
    """
    env = make(name)
    try:
        frame, _ = env.reset(seed=0)
        space = action_space(env)
        height, width, channels = frame.shape
        return EnvSpec(name, (height, width, channels), space, (name,))
    finally:
        env.close()


def action_space(env: gym.Env[Any, Any]) -> ActionSpace:
    """Raises `ConfigError` for spaces other than one discrete choice."""
    if not isinstance(env.action_space, gym.spaces.Discrete):
        raise ConfigError(f"action space {env.action_space} is not supported yet; only Discrete is")
    return ActionSpace.discrete(int(env.action_space.n))


def success(reward: float, terminated: bool) -> bool:
    """Whether an episode that ended with this reward reached its goal: minigrid pays on success only."""
    return bool(terminated and reward > 0)
