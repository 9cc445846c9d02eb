"""Checks encoded latents against the dataset that they are of: what `dreamer4 data validate --run` does beside it."""

from pathlib import Path

import numpy as np

from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.fault import Fault
from dreamer4.data.latents import CHUNK, LatentDataset
from dreamer4.errors import DataError


def check_latents(folder: Path, dataset: EpisodeDataset, shape: tuple[int, int]) -> list[Fault]:
    """Every fault by file and row; reads every latent, and so compares every checksum.

    Args:
        shape: `S, D` that the run's world model takes.
    """
    name = str(folder)
    try:
        latents = LatentDataset.open(folder, dataset)  # refuses other counts and another dataset
    except DataError as error:
        return [Fault("latents", name, str(error))]
    if latents.shape != shape:
        return [Fault("latents", name, f"they are of {latents.shape}, the world model takes {shape}: encode again")]
    found, first = [], 0
    for shard in dataset.manifest.shards:
        for start in range(first, first + shard.frames, CHUNK):
            stop = min(start + CHUNK, first + shard.frames)
            try:
                values = latents.latents(start, stop)
            except DataError as error:
                found.append(Fault("latents", f"{name}/{shard.file}", str(error), row=start - first))
                continue
            bad = np.flatnonzero(~(np.abs(values) <= 1).all(axis=(1, 2)))  # NaN is not
            if len(bad):
                text = f"{len(bad)} of {stop - start} latents are not finite or outside of [-1, 1]: encode again"
                found.append(Fault("latents", f"{name}/{shard.file}", text, row=start - first + int(bad[0])))
        first += shard.frames
    return found
