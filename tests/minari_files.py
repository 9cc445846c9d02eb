"""Datasets that Minari itself writes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from recordings import stamped

PICTURE = spaces.Box(0, 255, (64, 96, 3), np.uint8)
BUTTON = spaces.Discrete(5, start=2)


def write_minari_dataset(
    folder: Path,
    form: str,
    jpeg: bool,
    observations: gymnasium.Space = PICTURE,
    acts: gymnasium.Space = BUTTON,
    lengths: Sequence[int] = (70, 5),
) -> tuple[Path, list[list[Any]]]:
    """A dataset of episodes with so many actions, whose pictures show 128 e + t; gives its folder and the actions."""
    (folder / "data").mkdir(parents=True)
    storage = MinariStorage.new(folder / "data", observations, acts, data_format=form, jpeg_encoding=jpeg)
    buffers, drawn = [], []
    for number, length in enumerate(lengths):
        pictures = [stamped(128 * number + t) for t in range(length + 1)]
        seen = (
            pictures if observations is PICTURE else {"image": pictures, "speed": np.zeros((length + 1, 2), np.float32)}
        )
        acts.seed(number)
        drawn.append([acts.sample() for _ in range(length)])
        taken = drawn[-1]
        if isinstance(acts, spaces.Tuple):
            taken = tuple(list(column) for column in zip(*drawn[-1], strict=True))
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=seen,
                actions=taken,
                rewards=[float(t) for t in range(length)],
                terminations=[False] * (length - 1) + [number == 0],
                truncations=[False] * (length - 1) + [number == 1],
            )
        )
    storage.update_episodes(buffers)
    return folder, drawn


def write_endless(folder: Path) -> Path:
    """A dataset whose second episode is behind a pipe that nobody writes to: the HDF5 library waits for ever."""
    write_minari_dataset(folder, "hdf5", True, lengths=(5, 5, 5))
    os.mkfifo(folder / "data" / "pipe.hdf5")
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1/observations"]
        file["episode_1/observations"] = h5py.ExternalLink("pipe.hdf5", "/")
    return folder
