"""Writes one shard of a dataset, as several processes do side by side. Episodes come whole or in parts."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa

from dreamer4.actions import ActionSpace
from dreamer4.data.codecs import Codec
from dreamer4.data.index import EpisodeRow, write_index
from dreamer4.data.schema import Recording, Shard, crc32_of, index_name, shard_name
from dreamer4.data.spool import Spool
from dreamer4.data.storage import LocalFolder, local_path
from dreamer4.data.table import Chunk, record_batch
from dreamer4.errors import DataError, RunError
from dreamer4.files import replacing, write_json
from dreamer4.types import Ending, Episode, EpisodePart

BATCH_ROWS = 1024  # of a record batch: what is read to learn the actions of one frame
BATCH_BYTES = 32 << 20  # of its frames: what a writer holds in memory
RAW = Codec()


class ShardWriter:
    """Writes one shard, number `index`, of a dataset: a file, its index and, when they are whole, its record.

    Use it in a `with` block, or call `close`; after an error inside the block nothing is left of the shard. Shards of
    one dataset may be written by any number of processes, and again: the same episodes give the same file.

    Args:
        first_episode: number of the shard's first episode in the dataset.

    Raises:
        DataError: the codec can't hold such frames, or there are too many tasks.
        RunError: the folder can't be written.
    """

    def __init__(
        self,
        folder: Path,
        env: str,
        frame_shape: Sequence[int],
        actions: ActionSpace,
        tasks: Sequence[str],
        index: int,
        first_episode: int,
        codec: Codec = RAW,
    ):
        height, width, channels = frame_shape
        self.recording = Recording(env, (height, width, channels), actions, tuple(tasks), codec)
        self.folder, self.index, self.first_episode = local_path(folder), index, first_episode
        self.path = self.folder / shard_name(index)
        self.frames = self.bytes = 0
        self._rows: list[EpisodeRow] = []
        self._waiting: list[Chunk] = []
        self._actions, self._pixels = np.zeros((2, actions.columns)), np.zeros((3, channels))
        self._errors: list[float] = []
        self._sources: dict[str, int] = {}
        with ExitStack() as opening:
            self._temporary = opening.enter_context(replacing(self.path))
            _remove_remains(self.folder, index)
            self._writing = opening.enter_context(ExitStack())
            sink = self._writing.enter_context(pa.OSFile(str(self._temporary), "wb"))
            # Later batches may add names to the dictionary of sources.
            options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
            schema = self.recording.arrow_schema()
            self._file = self._writing.enter_context(pa.ipc.new_file(sink, schema, options=options))
            self._resources = opening.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._resources.__exit__(kind, error, trace)

    @property
    def episodes(self) -> int:
        return len(self._rows)

    def add(self, episode: Episode) -> None:
        """Raises `DataError` if the episode doesn't fit the dataset or breaks the timing contract; it isn't added."""
        self.add_parts(as_parts(episode), episode.task, episode.source)

    def add_parts(self, parts: Iterable[EpisodePart], task: int = 0, source: str = "") -> int:
        """Adds one episode that comes in parts; returns its number of frames.

        If the iterator raises, or a part doesn't fit, nothing of the episode is kept and the writer can go on.

        Raises:
            DataError: a part doesn't fit the dataset or breaks the timing contract, or the last one has no `end`.
            RunError: the disk is full or can't be written.
        """
        with Spool(self.recording, self.first_episode + self.episodes, task, source, self.folder) as spool:
            spool.take(parts)
            self.add_chunks(spool.row(), spool.chunks(), spool.actions(), spool.pixels, spool.errors)
        return self._rows[-1].length

    def add_chunks(
        self, row: EpisodeRow, chunks: Iterable[Chunk], actions: np.ndarray, pixels: np.ndarray, errors: Sequence[float]
    ) -> None:
        """Adds one episode that is coded already, such as one of another shard; nothing of it is checked.

        Args:
            actions, pixels, errors: its share of the shard's sums, as a `Spool` has them.
        """
        for chunk in chunks:
            self._waiting.append(chunk)
            rows, size = (sum(map(count, self._waiting)) for count in (_rows_of, _bytes_of))
            if rows >= BATCH_ROWS or size >= BATCH_BYTES:
                self._write_waiting()
        self._rows.append(row)
        self._actions, self._pixels = self._actions + actions, self._pixels + pixels
        self._errors += errors
        self.frames += row.length

    def close(self) -> Shard:
        """Gives shard and index their names, then writes the record.

        Raises:
            DataError: it has no episode.
            RunError: the disk is full or can't be written.
        """
        with self._resources:
            if not self._rows:
                raise DataError(f"'{self.path}' would hold no episode; add one")
            self._write_waiting()
            self._writing.close()
            with replacing(self.folder / index_name(self.index)) as temporary:
                write_index(temporary, self._rows, self._temporary)
        shard = self._summary()
        write_json(record_path(self.path), {**asdict(shard), "recording": self.recording.to_json()})
        return shard

    def _summary(self) -> Shard:
        folder, returns = LocalFolder(self.folder), np.array([row.episode_return for row in self._rows])
        sizes = {name: folder.size(name) or 0 for name in (self.path.name, index_name(self.index))}
        (bytes_, crc32), (index_bytes, index_crc32) = (
            (size, crc32_of(folder, name, size)) for name, size in sizes.items()
        )
        return Shard(
            file=self.path.name,
            index=index_name(self.index),
            first_episode=self.first_episode,
            episodes=self.episodes,
            frames=self.frames,
            bytes=bytes_,
            crc32=crc32,
            index_bytes=index_bytes,
            index_crc32=index_crc32,
            successes=sum(row.success for row in self._rows),
            known=sum(row.known for row in self._rows),
            return_sum=float(returns.sum()),
            return_square_sum=float((returns**2).sum()),
            action_sum=tuple(self._actions[0].tolist()),
            action_square_sum=tuple(self._actions[1].tolist()),
            pixels=int(self._pixels[0, 0]),
            pixel_sum=tuple(self._pixels[1].tolist()),
            pixel_square_sum=tuple(self._pixels[2].tolist()),
            error_chunks=len(self._errors),
            error_sum=float(np.sum(self._errors)),
        )

    def _write_waiting(self) -> None:
        if not self._waiting:
            return
        try:
            self._file.write_batch(record_batch(self._waiting, self.recording, self._sources))
        except OSError as error:
            raise RunError(f"can't write '{self.path}': {error.strerror or error}") from error
        self.bytes += sum(map(_bytes_of, self._waiting))
        self._waiting = []


def as_parts(episode: Episode) -> list[EpisodePart]:
    """A whole episode as its only part."""
    end = Ending(episode.terminal, episode.truncated, episode.success)
    columns = (episode.frames_THWC, episode.act_out_TA, episode.act_known_T, episode.reward_T, episode.events_TK)
    return [EpisodePart(*columns, end)]


def record_path(shard_path: Path) -> Path:
    return shard_path.with_suffix(".json")


def _rows_of(chunk: Chunk) -> int:
    return len(chunk.rows)


def _bytes_of(chunk: Chunk) -> int:
    return len(chunk.blob)


def _remove_remains(folder: Path, index: int) -> None:
    """The record of a shard that is about to be written again, and what killed writers left of it."""
    record_path(folder / shard_name(index)).unlink(missing_ok=True)
    for name in (shard_name(index), index_name(index)):
        for temporary in folder.glob(f".{name}.*.tmp"):
            temporary.unlink(missing_ok=True)
