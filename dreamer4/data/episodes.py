"""Reads a dataset: small columns in memory, frames memory-mapped, all on one frame axis.

The frame axis is all episodes laid end to end in the order of the manifest; a position on it is a frame's address.
"""

from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from dreamer4.actions import ActionSpace
from dreamer4.data.rows import Rows
from dreamer4.data.schema import Frame, Manifest, Shard, binary_rows, crc32_of, open_arrow
from dreamer4.errors import DataError
from dreamer4.rng import numpy_generator
from dreamer4.types import Episode


class EpisodeDataset:
    """Memory-mapped episodes. Suffix `F`: per frame of the whole dataset, `E`: per episode.

    Columns: `act_out_FA`, `act_known_F`, `reward_F`, `terminal_F`, `first_F`, `task_F`; per episode `starts_E`,
    `lengths_E`, `returns_E`, `success_E`, `task_E`.
    """

    def __init__(self, folder: Path, manifest: Manifest, verify: bool = False):
        self.folder, self.manifest = Path(folder), manifest
        tables = [self._open(shard, verify) for shard in manifest.shards]
        batches = [batch for table in tables for batch in table]
        dtype = np.dtype(np.uint8)
        self.frames = Rows([binary_rows(batch.column("frame"), dtype, manifest.frame) for batch in batches])
        columns = manifest.actions.columns

        def column(name: str) -> np.ndarray:
            return np.concatenate([batch.column(name).to_numpy(zero_copy_only=False) for batch in batches])

        self.act_out_FA = np.concatenate(
            [batch.column("act_out").flatten().to_numpy().reshape(-1, columns) for batch in batches]
        )
        self.act_known_F, self.reward_F = column("act_known"), column("reward")
        self.terminal_F, self.first_F, self.task_F = column("terminal"), column("first"), column("task")
        self.starts_E = np.flatnonzero(self.first_F)
        self.lengths_E = np.diff(np.append(self.starts_E, len(self.first_F)))
        if len(self.first_F) != manifest.frames or len(self.starts_E) != manifest.episodes:
            raise DataError(
                f"'{self.folder}' holds {len(self.first_F)} frames of {len(self.starts_E)} episodes, its manifest says "
                f"{manifest.frames} of {manifest.episodes}"
            )
        rewards = np.where(self.first_F, 0.0, self.reward_F).astype(np.float64)
        self.returns_E = np.add.reduceat(rewards, self.starts_E)
        self.success_E, self.task_E = column("success")[self.starts_E], self.task_F[self.starts_E]
        self._sources = [str(source) for batch in batches for source in self._sources_of(batch)]

    @classmethod
    def open(cls, folder: Path | str, verify: bool = False) -> Self:
        """Opens a finished dataset.

        Args:
            verify: also read every byte and compare checksums.

        Raises:
            DataError: there is no dataset, or a file is missing, truncated or damaged; the message names it.
        """
        return cls(Path(folder), Manifest.read(Path(folder)), verify)

    def _open(self, shard: Shard, verify: bool) -> list[pa.RecordBatch]:
        path = self.folder / shard.file
        reader = open_arrow(path, shard.bytes, self.manifest.recording.arrow_schema())
        if verify and crc32_of(path) != shard.crc32:
            raise DataError(f"'{path}' doesn't have the checksum of its manifest: it is damaged; write it again")
        try:
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"'{path}' is damaged: {error}") from error
        if sum(batch.num_rows for batch in batches) != shard.frames:
            raise DataError(f"'{path}' doesn't hold the {shard.frames} frames that the manifest says")
        return batches

    @staticmethod
    def _sources_of(batch: pa.RecordBatch) -> list[str]:
        """The source of every episode of a batch."""
        first = batch.column("first").to_numpy(zero_copy_only=False)
        return batch.column("source").take(pa.array(np.flatnonzero(first))).to_pylist()

    @property
    def frame_count(self) -> int:
        return len(self.first_F)

    @property
    def episode_count(self) -> int:
        return len(self.starts_E)

    def video(self, start: int, stop: int) -> np.ndarray:
        """Frames `start` to `stop - 1` of the frame axis, uint8 `[T, H, W, C]`; a view of the file where possible."""
        return self.frames.between(start, stop)

    def episode(self, index: int) -> Episode:
        """One whole recording."""
        start = int(self.starts_E[index])
        stop = start + int(self.lengths_E[index])
        return Episode(
            frames_THWC=self.video(start, stop),
            act_out_TA=self.act_out_FA[start:stop],
            act_known_T=self.act_known_F[start:stop],
            reward_T=self.reward_F[start:stop],
            terminal=bool(self.terminal_F[stop - 1]),
            success=bool(self.success_E[index]),
            task=int(self.task_E[index]),
            source=self._sources[index],
        )

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
