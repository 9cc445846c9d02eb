"""Batches of windows for training: batch number i is a function of (seed, name, i), so resuming needs no state.

The chosen episodes are laid end to end in a ring, and windows are drawn uniformly from it. A row may therefore hold
the end of one episode and the start of the next (`Clip.segment_BT` tells them apart), no frame is wasted on padding,
and every frame is drawn equally often.
"""

from dataclasses import dataclass

import numpy as np
import torch

from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.latents import LatentDataset
from dreamer4.errors import DataError
from dreamer4.rng import numpy_generator
from dreamer4.types import Clip

ALL = slice(None)


@dataclass(frozen=True)
class Axis:
    """Chosen episodes end to end. `frame_F[i]` is the dataset's frame at position i of this axis."""

    frame_F: np.ndarray
    starts_E: np.ndarray  # positions at which the chosen episodes begin
    lengths_E: np.ndarray

    @classmethod
    def of(cls, dataset: EpisodeDataset, episodes: np.ndarray) -> "Axis":
        if episodes.shape != (dataset.episode_count,):
            raise DataError(
                f"episodes are chosen by truths of shape {episodes.shape}, '{dataset.folder}' has "
                f"{dataset.episode_count} episodes: use one truth per episode"
            )
        chosen = np.flatnonzero(episodes)
        lengths = dataset.lengths_E[chosen]
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        frames = np.repeat(dataset.starts_E[chosen] - starts, lengths) + np.arange(lengths.sum())
        return cls(frames, starts, lengths)

    def __len__(self) -> int:
        return len(self.frame_F)


class ClipSampler:
    """Seeded windows over some of the episodes of a dataset.

    Args:
        episodes: bool `[E]`, which episodes; None = all.
        latents: give latents instead of frames.
        name: of the use, part of the address of the randomness.
        ends_alive: no window ends on a terminal frame; for contexts that a dream goes on from.

    Raises:
        DataError: no episode is chosen, or the latents are of another dataset.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        episodes: np.ndarray | None = None,
        latents: LatentDataset | None = None,
        seed: int = 0,
        name: str = "clips",
        ends_alive: bool = False,
    ):
        self.dataset, self.latents, self.seed, self.name = dataset, latents, seed, name
        self.episodes = np.ones(dataset.episode_count, bool) if episodes is None else np.asarray(episodes, bool)
        if not self.episodes.any():
            raise DataError(f"no episode of '{dataset.folder}' is chosen for '{name}'; collect more recordings")
        if latents is not None and latents.frame_count != dataset.frame_count:
            raise DataError(
                f"'{name}' has latents of {latents.frame_count} frames for the {dataset.frame_count} frames of "
                f"'{dataset.folder}': encode it again"
            )
        self.axis, self.ends_alive = Axis.of(dataset, self.episodes), ends_alive
        self._relevant: tuple[bytes, Axis] | None = None

    def batch(self, step: int, batch: int, length: int, rows: slice | np.ndarray = ALL, contents: bool = True) -> Clip:
        """Batch number `step`: `batch` windows of `length` frames, or some rows of it.

        Args:
            rows: those to read; nothing is read from the disk for the others.
            contents: see `clip`.

        Raises:
            DataError: the chosen episodes have fewer frames than one window.
        """
        random = numpy_generator(self.seed, "clips", self.name, step)
        return self.clip(self.axis.frame_F[self._windows(self.axis, random, batch, length)[rows]], contents)

    def mixture(
        self,
        step: int,
        batch: int,
        length: int,
        relevant_E: np.ndarray,
        rows: slice | np.ndarray = ALL,
        contents: bool = True,
    ) -> tuple[Clip, torch.Tensor]:
        """Half uniform windows, half windows of relevant episodes only (paper, section 3.3).

        Of an odd number of rows the odd one is uniform at even steps and relevant at odd steps.

        Args:
            rows: those to read, in this order; nothing is read from the disk for the others.
            contents: see `clip`.

        Returns:
            The clip and bool `[B]`, true for the rows of the relevant half, which come last in the whole batch.

        Raises:
            DataError: no chosen episode is relevant, or there are fewer frames than one window.
        """
        random = numpy_generator(self.seed, "clips", self.name, step)
        relevant = np.asarray(relevant_E, bool) & self.episodes
        if not relevant.any():
            raise DataError(f"no episode of '{self.dataset.folder}' is relevant for '{self.name}': none succeeded")
        key = relevant.tobytes()
        if self._relevant is None or self._relevant[0] != key:
            self._relevant = key, Axis.of(self.dataset, relevant)
        axis = self._relevant[1]
        half = (batch + step % 2) // 2
        uniform = self.axis.frame_F[self._windows(self.axis, random, batch - half, length)]
        chosen = axis.frame_F[self._windows(axis, random, half, length)]
        relevant_B = torch.arange(batch) >= batch - half
        return self.clip(np.concatenate([uniform, chosen])[rows], contents), relevant_B[rows]

    def _windows(self, axis: Axis, random: np.random.Generator, batch: int, length: int) -> np.ndarray:
        if len(axis) < length:
            raise DataError(
                f"'{self.name}' needs windows of {length} frames, the chosen episodes of '{self.dataset.folder}' have "
                f"{len(axis)} in all: collect more or shorten the windows"
            )
        last = random.integers(len(axis), size=batch)
        if self.ends_alive:
            alive = np.flatnonzero(~self.dataset.terminal_F[axis.frame_F])
            last = alive[random.integers(len(alive), size=batch)]
        return (last[:, None] - np.arange(length)[::-1]) % len(axis)

    def clip(self, frame_BT: np.ndarray, contents: bool = True) -> Clip:
        """The clip of frames at any positions of the dataset; a first frame starts a segment.

        Args:
            contents: with frames or latents; without them a clip is cheap, whatever its size.
        """
        data = self.dataset
        first = data.first_F[frame_BT]
        before = np.where(first, frame_BT, frame_BT - 1)  # the frame at which act_in was chosen
        known_in = ~first & data.act_known_F[before]
        # An episode that begins at the row's first frame starts no new segment: counting is from 0.
        segment = np.cumsum(first, axis=1) - first[:, :1]
        video = latents = None
        if not contents:
            pass
        elif self.latents is None:
            video = torch.from_numpy(data.frames.take(frame_BT))
        else:
            latents = torch.from_numpy(self.latents.take(frame_BT))
        return Clip(
            act_in_BTA=torch.from_numpy(np.where(known_in[..., None], data.act_out_FA[before], 0)),
            act_in_known_BT=torch.from_numpy(known_in),
            act_out_BTA=torch.from_numpy(data.act_out_FA[frame_BT]),
            act_out_known_BT=torch.from_numpy(data.act_known_F[frame_BT]),
            reward_BT=torch.from_numpy(np.where(first, 0, data.reward_F[frame_BT])),
            reward_known_BT=torch.from_numpy(~first),
            continue_BT=torch.from_numpy(1 - data.terminal_F[frame_BT].astype(np.float32)),
            segment_BT=torch.from_numpy(segment.astype(np.int64)),
            task_BT=torch.from_numpy(data.task_F[frame_BT].astype(np.int64)),
            video_BTHWC=video,
            latents_BTSD=latents,
        )
