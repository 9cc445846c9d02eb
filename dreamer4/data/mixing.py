"""Clips of several datasets in one batch, by weight: labelled and unlabelled recordings, or several sources.

Which dataset a row is of is drawn by address like everything else, so batch number i stays a function of (seed, name,
i). Rows of a dataset without actions have `act_in_known_BT` and `act_out_known_BT` false throughout; that is all that
a learner needs to know of them.
"""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch

from dreamer4.data.clips import ALL, ClipSampler
from dreamer4.errors import DataError
from dreamer4.rng import numpy_generator
from dreamer4.types import Clip


class MixedClips:
    """Rows of several samplers, each drawn with a probability in proportion to its weight.

    Args:
        samplers: of datasets with one frame size, action space and list of tasks; their `seed` and `name` may differ.
        weights: one for each, at least 0. To draw every frame of all equally often, give their numbers of frames.

    Raises:
        DataError: there is no dataset, they don't fit each other, or the weights aren't one for each.
    """

    def __init__(self, samplers: Sequence[ClipSampler], weights: Sequence[float], seed: int = 0, name: str = "mixed"):
        self.samplers, self.seed, self.name = list(samplers), seed, name
        share = np.array(weights, np.float64)
        if not self.samplers or share.shape != (len(self.samplers),) or not (share >= 0).all() or not share.sum() > 0:
            raise DataError(
                f"{len(self.samplers)} datasets are mixed by as many weights from 0 on, got {list(weights)}"
            )
        self.share = share / share.sum()
        first = self.samplers[0].dataset.manifest.recording
        for sampler in self.samplers[1:]:
            other, folder = sampler.dataset.manifest.recording, sampler.dataset.folder
            for key in ("frame", "actions", "tasks"):
                if getattr(other, key) != getattr(first, key):
                    raise DataError(
                        f"'{folder}' can't be mixed with '{self.samplers[0].dataset.folder}': its {key} is "
                        f"{getattr(other, key)}, not {getattr(first, key)}"
                    )
            if (sampler.latents is None) != (self.samplers[0].latents is None):
                raise DataError(f"'{folder}' is to give latents and another one frames: mix one kind")

    def sources(self, step: int, batch: int) -> np.ndarray:
        """`[B]`: which dataset each row of a batch is of."""
        return numpy_generator(self.seed, "mixing", self.name, step).choice(len(self.samplers), batch, p=self.share)

    def batch(self, step: int, batch: int, length: int, rows: slice | np.ndarray = ALL, contents: bool = True) -> Clip:
        """As `ClipSampler.batch`; a row is the same row of its dataset's own batch of this number."""
        wanted = np.arange(batch)[rows]
        source = self.sources(step, batch)[wanted]
        parts, order = [], []
        for number in np.unique(source):
            places = np.flatnonzero(source == number)
            parts.append(self.samplers[number].batch(step, batch, length, wanted[places], contents))
            order.append(places)
        return _merged(parts, torch.from_numpy(np.argsort(np.concatenate(order))))


class Half:
    """The uniform and the relevant half of `ClipSampler.mixture` as plain batches, such as contexts of dreams.

    The halves are shuffled, so that the first rows, which a learner may single out, are of both kinds.

    Args:
        relevant_E: as `ClipSampler.mixture` takes it.
    """

    def __init__(self, clips: ClipSampler, relevant_E: np.ndarray):
        self.clips, self.relevant_E = clips, relevant_E

    def batch(self, step: int, batch: int, length: int, rows: slice | np.ndarray = ALL, contents: bool = True) -> Clip:
        """As `ClipSampler.batch`."""
        order = numpy_generator(self.clips.seed, "halves", self.clips.name, step).permutation(batch)[rows]
        return self.clips.mixture(step, batch, length, self.relevant_E, order, contents)[0]


def _merged(parts: Sequence[Clip], order: torch.Tensor) -> Clip:
    columns = {}
    for field in fields(Clip):
        values = [getattr(part, field.name) for part in parts]
        columns[field.name] = None if values[0] is None else torch.cat(values)[order]
    return Clip(**columns)
