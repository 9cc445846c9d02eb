"""Plays one episode and keeps it as a recording."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from dreamer4.envs.registry import success
from dreamer4.types import Episode


def run_episode(
    env: gym.Env[np.ndarray, Any],
    act: Callable[[np.ndarray], int],
    seed: int | None = None,
    max_frames: int | None = None,
    source: str = "",
) -> Episode:
    """Resets the environment and plays until it ends or `max_frames` are recorded.

    Args:
        act: frame `[H, W, C]` to discrete action; asked at every frame but the last.
        seed: of the environment's reset; without one the environment goes on with its own random numbers.
        source: who plays, kept with the recording.
    """
    frame, _ = env.reset(seed=seed)
    frames, actions, rewards = [frame], [], [0.0]
    terminated = truncated = False
    while not (terminated or truncated) and len(frames) != max_frames:
        action = act(frame)
        frame, reward, terminated, truncated, _ = env.step(action)
        frames.append(frame)
        actions.append([float(action)])
        rewards.append(float(reward))
    known = np.ones(len(frames), bool)
    known[-1] = False
    return Episode(
        frames_THWC=np.stack(frames),
        act_out_TA=np.array([*actions, [0.0]], np.float32),
        act_known_T=known,
        reward_T=np.array(rewards, np.float32),
        terminal=bool(terminated),
        truncated=bool(truncated and not terminated),
        success=success(rewards[-1], terminated),
        source=source,
    )
