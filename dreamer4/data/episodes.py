"""Reads a dataset: an index of episodes in memory, rows and frames when they are asked for, all on one frame axis.

The frame axis is all episodes laid end to end in the order of the manifest; a position on it is a frame's address.
"""

import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from dreamer4.actions import ActionSpace
from dreamer4.data.blocks import Blocks, Column, Frames
from dreamer4.data.index import Index, read_index
from dreamer4.data.schema import Frame, Manifest, Shard, check_size, crc32_of
from dreamer4.data.storage import Folder, folder_at
from dreamer4.errors import DataError
from dreamer4.rng import numpy_generator
from dreamer4.types import Episode

OPENERS = 16  # threads that read the indices of shards


class EpisodeDataset:
    """Episodes on a disk or elsewhere. Suffix `F`: per frame of the whole dataset, `E`: per episode, `V`: per event.

    In memory: `starts_E`, `lengths_E`, `returns_E`, `success_E`, `task_E`, `terminal_E`, `truncated_E`, `known_E`
    (frames with an action), `event_frame_V`, `event_task_V`.

    Read where they are indexed, as arrays are: `frames`, `act_out_FA`, `act_known_F`, `reward_F`, `events_F` (bit k:
    the goal of task k was reached), `first_F`, `terminal_F`, `task_F`.
    """

    def __init__(self, folder: Folder, manifest: Manifest, verify: bool = False, threads: int = 0):
        self.place, self.folder, self.manifest = folder, folder.name, manifest
        if not manifest.shards:
            raise DataError(f"the dataset in '{self.folder}' has no shard: record or import something")
        with ThreadPoolExecutor(OPENERS) as pool:
            indices = list(pool.map(lambda shard: open_shard(folder, manifest, shard, verify), manifest.shards))

        def column(name: str) -> np.ndarray:
            return np.concatenate([getattr(index, name) for index in indices])

        self.lengths_E, self.task_E, self.returns_E = column("length_E"), column("task_E"), column("return_E")
        self.success_E, self.known_E = column("success_E"), column("known_E")
        self.terminal_E, self.truncated_E = column("terminal_E"), column("truncated_E")
        self.starts_E = np.cumsum(self.lengths_E) - self.lengths_E
        self._source_E = pa.chunked_array([index.source_E for index in indices])
        frames_before = np.cumsum([0, *(shard.frames for shard in manifest.shards[:-1])])
        events = [index.event_frame_V + before for index, before in zip(indices, frames_before, strict=True)]
        self.event_frame_V, self.event_task_V = np.concatenate(events), column("event_task_V")
        self._blocks = Blocks(folder, manifest, indices)
        self.frames = Frames(self._blocks, self.starts_E, self.lengths_E, threads)
        count, columns = manifest.frames, manifest.actions.columns
        take = self._blocks.take
        self.act_out_FA = Column(lambda index: take(index)["act_out"], count, (columns,), np.float32)
        self.act_known_F = Column(lambda index: take(index)["act_known"], count, (), np.bool_)
        self.reward_F = Column(lambda index: take(index)["reward"], count, (), np.float32)
        self.events_F = Column(lambda index: take(index)["events"], count, (), np.int64)
        self.first_F = Column(self.is_first, count, (), np.bool_)
        self.terminal_F = Column(self.is_terminal, count, (), np.bool_)
        self.task_F = Column(lambda index: self.task_E[self.episode_of(index)], count, (), np.int32)

    @classmethod
    def open(cls, folder: Path | str, verify: bool = False, threads: int = 0) -> Self:
        """Opens a finished dataset.

        Args:
            folder: a path, or a URL that pyarrow or fsspec knows.
            verify: also read every byte and compare checksums.
            threads: that decode frames side by side; 0 decodes in the caller's thread.

        Raises:
            DataError: there is no dataset, or a file is missing, truncated or damaged; the message names it.
        """
        place = folder_at(folder)
        return cls(place, Manifest.read(place), verify, threads)

    @property
    def frame_count(self) -> int:
        return self.manifest.frames

    @property
    def episode_count(self) -> int:
        return len(self.starts_E)

    @property
    def event_pairs(self) -> np.ndarray:
        """Int64 `[V, 2]`: the frame of every event, and the task whose goal was reached."""
        return np.stack([self.event_frame_V, self.event_task_V], axis=1).astype(np.int64)

    def episode_of(self, frame: np.ndarray) -> np.ndarray:
        """The number of the episode in which a frame lies."""
        return np.searchsorted(self.starts_E, frame, side="right") - 1

    def is_first(self, frame: np.ndarray) -> np.ndarray:
        return frame == self.starts_E[self.episode_of(frame)]

    def is_terminal(self, frame: np.ndarray) -> np.ndarray:
        episode = self.episode_of(frame)
        return self.terminal_E[episode] & (frame == self.starts_E[episode] + self.lengths_E[episode] - 1)

    def rows(self, frame: np.ndarray) -> np.ndarray:
        """`act_out`, `act_known`, `reward` and `events` of frames at any positions, as one structured array."""
        return self._blocks.take(frame)

    def video(self, start: int, stop: int) -> np.ndarray:
        """Frames `start` to `stop - 1` of the frame axis, uint8 `[T, H, W, C]`, read-only."""
        video = self.frames.between(start, stop)
        video.flags.writeable = False
        return video

    def episode(self, index: int) -> Episode:
        """One whole recording."""
        start = int(self.starts_E[index])
        stop = start + int(self.lengths_E[index])
        rows = self.rows(np.arange(start, stop))
        events = rows["events"][:, None] >> np.arange(len(self.manifest.tasks)) & 1
        return Episode(
            frames_THWC=self.video(start, stop),
            act_out_TA=rows["act_out"].copy(),
            act_known_T=rows["act_known"].copy(),
            reward_T=rows["reward"].copy(),
            terminal=bool(self.terminal_E[index]),
            success=bool(self.success_E[index]),
            task=int(self.task_E[index]),
            source=self.source(index),
            truncated=bool(self.truncated_E[index]),
            events_TK=events.astype(bool) if events.any() else None,
        )

    def source(self, index: int) -> str:
        """Where an episode comes from."""
        return self._source_E[index].as_py()

    def check_fits(self, frame: Frame, actions: ActionSpace) -> None:
        """Raises `DataError` if the recordings are not of the frame size and action space that a model takes."""
        if tuple(self.manifest.frame) != tuple(frame):
            raise DataError(
                f"the dataset in '{self.folder}' has frames of {tuple(self.manifest.frame)}, the model takes "
                f"{tuple(frame)}: collect again or set tokenizer.frame"
            )
        if self.manifest.actions != actions:
            raise DataError(
                f"the dataset in '{self.folder}' has actions {self.manifest.actions.to_json()}, the model takes "
                f"{actions.to_json()}: use recordings of the run's environment"
            )

    def split(self, validation: float, seed: int) -> np.ndarray:
        """`[E]` bool, true for training episodes; the others, at least one, are for validation."""
        held_out = min(self.episode_count - 1, max(1, round(validation * self.episode_count)))
        training = np.ones(self.episode_count, bool)
        order = numpy_generator(seed, "validation split").permutation(self.episode_count)
        training[order[:held_out]] = False
        return training


def open_shard(folder: Folder, manifest: Manifest, shard: Shard, verify: bool = False) -> Index:
    """The index of a shard, checked against the manifest.

    Args:
        verify: also read every byte of shard and index.

    Raises:
        DataError: a file is missing, truncated or damaged; the message names it.
    """
    check_size(folder, shard.file, shard.bytes)
    check_size(folder, shard.index, shard.index_bytes)
    if verify and crc32_of(folder, shard.file, shard.bytes) != shard.crc32:
        raise damaged(folder, shard.file)
    data = folder.read(shard.index)
    if zlib.crc32(data) != shard.index_crc32:
        raise damaged(folder, shard.index)
    name = f"{folder.name}/{shard.index}"
    return read_index(data, name, manifest.recording, shard.episodes, shard.frames, shard.bytes)


def damaged(folder: Folder, file: str) -> DataError:
    return DataError(f"'{folder.name}/{file}' doesn't have the checksum of its manifest: it is damaged; write it again")
