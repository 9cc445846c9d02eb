"""Which frames are different from each other: so that what was recorded a thousand times need not outweigh the rest."""

from hashlib import blake2b

import numpy as np

from dreamer4.data.clips import Axis
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.rng import numpy_generator

CHUNK = 1024  # frames in memory at once


def digests(dataset: EpisodeDataset, frame_N: np.ndarray) -> list[bytes]:
    """Of the pixels of frames; equal frames have equal ones."""
    found: list[bytes] = []
    for start in range(0, len(frame_N), CHUNK):
        frames = dataset.frames.take(frame_N[start : start + CHUNK])
        found += [blake2b(frame.tobytes(), digest_size=16).digest() for frame in frames]
    return found


def distinct_arrivals(dataset: EpisodeDataset, episodes_E: np.ndarray, seed: int) -> np.ndarray:
    """Int64 `[V]`: one frame of the chosen episodes for every different way to arrive at a frame.

    A way is the frame before and the action chosen there; for the first frame of an episode, what it shows. Of equal
    ones a random one is given.
    """
    axis = Axis.of(dataset, np.asarray(episodes_E, bool))
    frame_F = axis.frames(np.arange(len(axis)))
    seen, action_FA = digests(dataset, frame_F), dataset.act_out_FA[frame_F]
    first_F = dataset.is_first(frame_F)
    found: dict[bytes, int] = {}
    for place in numpy_generator(seed, "distinct arrivals").permutation(len(frame_F)):
        way = seen[place] if first_F[place] else seen[place - 1] + action_FA[place - 1].tobytes()
        found.setdefault(way, int(frame_F[place]))
    return np.sort(np.fromiter(found.values(), np.int64))
