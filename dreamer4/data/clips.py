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
    """Chosen episodes end to end."""

    starts_E: np.ndarray  # positions at which the chosen episodes begin
    lengths_E: np.ndarray
    first_E: np.ndarray  # frames of the dataset at which they begin
    terminal_E: np.ndarray  # whether their last frame is terminal

    @classmethod
    def of(cls, dataset: EpisodeDataset, episodes: np.ndarray) -> "Axis":
        if episodes.shape != (dataset.episode_count,):
            raise DataError(
                f"episodes are chosen by truths of shape {episodes.shape}, '{dataset.folder}' has "
                f"{dataset.episode_count} episodes: use one truth per episode"
            )
        chosen = np.flatnonzero(episodes)
        lengths = dataset.lengths_E[chosen]
        return cls(np.cumsum(lengths) - lengths, lengths, dataset.starts_E[chosen], dataset.terminal_E[chosen])

    def __len__(self) -> int:
        return int(self.lengths_E.sum())

    def frames(self, position: np.ndarray) -> np.ndarray:
        """The dataset's frames at positions of this axis."""
        episode = np.searchsorted(self.starts_E, position, side="right") - 1
        return self.first_E[episode] + position - self.starts_E[episode]

    def positions(self, frame: np.ndarray) -> np.ndarray:
        """The positions of those of the dataset's frames that lie on this axis, in the same order."""
        episode = np.searchsorted(self.first_E, frame, side="right") - 1
        offset = frame - self.first_E[episode]
        on_axis = (episode >= 0) & (offset < self.lengths_E[episode])
        return (self.starts_E[episode] + offset)[on_axis]

    def alive(self, number: np.ndarray) -> np.ndarray:
        """Positions of the frames with these numbers, counting only those that are not terminal."""
        terminal = (self.starts_E + self.lengths_E - 1)[self.terminal_E]
        return number + np.searchsorted(terminal - np.arange(len(terminal)), number, side="right")

    @property
    def alive_count(self) -> int:
        return len(self) - int(self.terminal_E.sum())


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
        self._events: tuple[np.ndarray, list[tuple[int, np.ndarray]]] | None = None

    def batch(self, step: int, batch: int, length: int, rows: slice | np.ndarray = ALL, contents: bool = True) -> Clip:
        """Batch number `step`: `batch` windows of `length` frames, or some rows of it.

        Args:
            rows: those to read; nothing is read from the disk for the others.
            contents: see `clip`.

        Raises:
            DataError: the chosen episodes have fewer frames than one window.
        """
        random = numpy_generator(self.seed, "clips", self.name, step)
        return self.clip(self.axis.frames(self._windows(self.axis, random, batch, length)[rows]), contents)

    def mixture(
        self,
        step: int,
        batch: int,
        length: int,
        relevant_E: np.ndarray,
        rows: slice | np.ndarray = ALL,
        contents: bool = True,
    ) -> tuple[Clip, torch.Tensor]:
        """Half uniform windows, half relevant windows (paper, section 3.3).

        Of an odd number of rows the odd one is uniform at even steps and relevant at odd steps.

        Args:
            relevant_E: bool `[E]`, the episodes that relevant windows are of. Where episodes are long: whole numbers
                `[V]`, frames of the dataset such as its `event_frame_V`; a relevant window then holds one of those
                that lie in the chosen episodes, each as often and at any place of the window. Where episodes pursue all
                tasks at once: events `[V, 2]` (`event_pairs` of a dataset), each a frame and the task whose goal was
                reached. A relevant row then pursues a task of those that were reached, all drawn equally often [G],
                and holds one of its events; a uniform row pursues any; the rewards of a row are its task's events.
            rows: those to read, in this order; nothing is read from the disk for the others.
            contents: see `clip`.

        Returns:
            The clip and bool `[B]`, true for the rows of the relevant half, which come last in the whole batch.

        Raises:
            DataError: no chosen episode is relevant, or there are fewer frames than one window.
        """
        random = numpy_generator(self.seed, "clips", self.name, step)
        half = (batch + step % 2) // 2
        uniform = self.axis.frames(self._windows(self.axis, random, batch - half, length))
        task_B = None
        if relevant_E.ndim == 2:
            some_B = random.integers(len(self.dataset.manifest.tasks), size=batch - half)
            windows, reached_B = self._reaching(relevant_E, random, half, length)
            chosen, task_B = self.axis.frames(windows), np.concatenate([some_B, reached_B])[rows]
        elif relevant_E.dtype == bool:
            axis = self._relevant_axis(relevant_E)
            chosen = axis.frames(self._windows(axis, random, half, length))
        else:
            chosen = self.axis.frames(self._around(relevant_E, random, half, length))
        relevant_B = torch.arange(batch) >= batch - half
        return self.clip(np.concatenate([uniform, chosen])[rows], contents, task_B), relevant_B[rows]

    def _relevant_axis(self, relevant_E: np.ndarray) -> Axis:
        relevant = relevant_E & self.episodes
        if not relevant.any():
            raise DataError(f"no episode of '{self.dataset.folder}' is relevant for '{self.name}': none succeeded")
        key = relevant.tobytes()
        if self._relevant is None or self._relevant[0] != key:
            self._relevant = key, Axis.of(self.dataset, relevant)
        return self._relevant[1]

    def _around(self, frame_V: np.ndarray, random: np.random.Generator, batch: int, length: int) -> np.ndarray:
        """Windows that hold one of the frames."""
        places = self.axis.positions(np.asarray(frame_V))
        if not len(places):
            raise DataError(f"no frame of '{self.dataset.folder}' is relevant for '{self.name}': nothing was reached")
        last = places[random.integers(len(places), size=batch)] + random.integers(length, size=batch)
        if self.ends_alive:
            last = last - self.dataset.is_terminal(self.axis.frames(last % len(self.axis)))
        return (last[:, None] - np.arange(length)[::-1]) % len(self.axis)

    def _reaching(
        self, event_V2: np.ndarray, random: np.random.Generator, batch: int, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Windows that hold an event of a task each, and the tasks."""
        if self._events is None or self._events[0] is not event_V2:
            found = {int(k): self.axis.positions(event_V2[event_V2[:, 1] == k, 0]) for k in np.unique(event_V2[:, 1])}
            self._events = event_V2, [(task, places) for task, places in found.items() if len(places)]
        reached = self._events[1]
        if not reached:
            raise DataError(f"no event is in the episodes of '{self.dataset.folder}' that are chosen for '{self.name}'")
        rows = [reached[number] for number in random.integers(len(reached), size=batch)]
        event = np.array([places[random.integers(len(places))] for _, places in rows], np.int64)
        last = (event + random.integers(length, size=batch)) % len(self.axis)
        if self.ends_alive:
            last = last - self.dataset.is_terminal(self.axis.frames(last))
        windows = (last[:, None] - np.arange(length)[::-1]) % len(self.axis)
        return windows, np.array([task for task, _ in rows], np.int64)

    def _windows(self, axis: Axis, random: np.random.Generator, batch: int, length: int) -> np.ndarray:
        if len(axis) < length:
            raise DataError(
                f"'{self.name}' needs windows of {length} frames, the chosen episodes of '{self.dataset.folder}' have "
                f"{len(axis)} in all: collect more or shorten the windows"
            )
        last = random.integers(len(axis), size=batch)
        if self.ends_alive:
            last = axis.alive(random.integers(axis.alive_count, size=batch))
        return (last[:, None] - np.arange(length)[::-1]) % len(axis)

    def clip(self, frame_BT: np.ndarray, contents: bool = True, task_B: np.ndarray | None = None) -> Clip:
        """The clip of frames at any positions of the dataset; a first frame starts a segment.

        Args:
            contents: with frames or latents; without them a clip is cheap, whatever its size.
            task_B: what the rows pursue, rewarded by the task's events; None = what the recordings say of both.
        """
        data = self.dataset
        episode = data.episode_of(frame_BT)
        first = frame_BT == data.starts_E[episode]
        terminal = data.terminal_E[episode] & (frame_BT == data.starts_E[episode] + data.lengths_E[episode] - 1)
        before = np.where(first, frame_BT, frame_BT - 1)  # the frame at which act_in was chosen
        rows, rows_before = data.rows(frame_BT), data.rows(before)
        task = data.task_E[episode] if task_B is None else np.broadcast_to(task_B[:, None], frame_BT.shape)
        reward = rows["reward"] if task_B is None else (rows["events"] >> task & 1).astype(np.float32)
        known_in = ~first & rows_before["act_known"]
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
            act_in_BTA=_tensor(np.where(known_in[..., None], rows_before["act_out"], 0)),
            act_in_known_BT=_tensor(known_in),
            act_out_BTA=_tensor(rows["act_out"]),
            act_out_known_BT=_tensor(rows["act_known"]),
            reward_BT=_tensor(np.where(first, 0, reward)),
            reward_known_BT=_tensor(~first),
            continue_BT=_tensor(1 - terminal.astype(np.float32)),
            segment_BT=_tensor(segment.astype(np.int64)),
            task_BT=_tensor(task.astype(np.int64)),
            video_BTHWC=video,
            latents_BTSD=latents,
        )


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
