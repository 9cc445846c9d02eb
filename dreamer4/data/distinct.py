"""Which frames are different from each other: so that what was recorded a thousand times need not outweigh the rest."""

from hashlib import blake2b

import numpy as np

from dreamer4.data.clips import Axis
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.rng import numpy_generator

CHUNK = 1024  # frames in memory at once


def digest(frame_HWC: np.ndarray) -> bytes:
    """Of a frame's pixels; equal frames have equal ones."""
    return blake2b(frame_HWC.tobytes(), digest_size=16).digest()


def digests(dataset: EpisodeDataset, frame_N: np.ndarray) -> list[bytes]:
    """Of frames at any positions of a dataset."""
    found: list[bytes] = []
    for start in range(0, len(frame_N), CHUNK):
        frames = dataset.frames.take(frame_N[start : start + CHUNK])
        found += [digest(frame) for frame in frames]
    return found


def distinct_frames(dataset: EpisodeDataset, episodes_E: np.ndarray, seed: int, times: int = 8) -> np.ndarray:
    """Int64 `[V]`: frames of the chosen episodes in which everything that they show is equally often.

    Of equal frames there are `times`, different ones as far as there are as many, so that a draw from all of them is a
    draw from what is shown, then from where it is shown.
    """
    axis = Axis.of(dataset, np.asarray(episodes_E, bool))
    frame_F = numpy_generator(seed, "distinct frames").permutation(axis.frames(np.arange(len(axis))))
    _, shown_F = np.unique(np.array(digests(dataset, frame_F)), return_inverse=True)
    order = np.argsort(shown_F, kind="stable")
    counts_U = np.bincount(shown_F)
    starts_U = np.cumsum(counts_U) - counts_U
    chosen_UN = starts_U[:, None] + np.arange(times) % counts_U[:, None]
    return frame_F[order][chosen_UN].ravel()
