"""Mean and spread of every pixel over a dataset, for tokenizers that standardise their input."""

import numpy as np

from dreamer4.data.clips import Axis
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.errors import DataError
from dreamer4.rng import numpy_generator

CHUNK_BYTES = 16 << 20  # of frames that are in memory at a time


def pixel_statistics(
    dataset: EpisodeDataset, episodes: np.ndarray, max_frames: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation `[H, W, C]` in [0, 1], over at most `max_frames` frames of the chosen episodes.

    Raises:
        DataError: no episode is chosen.
    """
    axis = Axis.of(dataset, episodes)
    if not len(axis):
        raise DataError(f"no episode of '{dataset.folder}' is chosen for pixel statistics; choose at least one")
    places = np.arange(min(len(axis), max_frames))
    if len(axis) > max_frames:
        places = np.sort(numpy_generator(seed, "pixel statistics").choice(len(axis), max_frames, replace=False))
    frames = axis.frames(places)
    # Whole numbers, so that sums are exact and a pixel that never changes has a deviation of exactly 0.
    total, squares = np.zeros(dataset.manifest.frame, np.int64), np.zeros(dataset.manifest.frame, np.int64)
    rows = max(1, CHUNK_BYTES // dataset.manifest.recording.frame_bytes)
    for start in range(0, len(frames), rows):
        video = dataset.frames.take(frames[start : start + rows])
        total += video.sum(axis=0, dtype=np.int64)
        squares += np.square(video, dtype=np.uint16).sum(axis=0, dtype=np.int64)
    mean = total / len(frames) / 255
    std = np.sqrt(len(frames) * squares - total**2) / len(frames) / 255
    return mean.astype(np.float32), std.astype(np.float32)
