"""Evaluation episodes that begin as no recording does: what a policy is worth where nobody has started before."""

from collections.abc import Iterable

import numpy as np

from dreamer4.data.distinct import digest, digests
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.envs.registry import make


def new_starts(dataset: EpisodeDataset, env_name: str, seeds: Iterable[int]) -> np.ndarray:
    """Bool `[N]`: whether the environment, reset with a seed, shows a frame with which no recording starts."""
    recorded, env = set(digests(dataset, dataset.starts_E)), make(env_name)
    return np.array([digest(env.reset(seed=seed)[0]) not in recorded for seed in seeds], bool)
