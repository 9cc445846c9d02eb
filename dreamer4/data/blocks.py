"""The rows of a dataset on the disk: small columns by blocks, frames by chunks, each read when it is asked for.

A block is a record batch; its small columns are read together and the blocks used last are remembered. A chunk is some
neighbouring frames of one episode, coded together. Everything that is read is compared with its checksum: small columns
and coded chunks each time, raw chunks the first time.
"""

import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from dreamer4.data.index import Index
from dreamer4.data.rows import Rows, runs
from dreamer4.data.schema import Manifest
from dreamer4.data.storage import Folder, RangeFile, Recent
from dreamer4.errors import DataError

OPEN_FILES = 256
BLOCKS = 256  # remembered, about 0.1 MB each


@dataclass(frozen=True)
class Block:
    """The small columns of a record batch, `R` rows."""

    rows_R: np.ndarray  # structured: act_out, act_known, reward, events
    crc_R: np.ndarray  # of the chunk that begins in the row
    ends_R: np.ndarray | None  # `[R + 1]`: bytes of the coded frames before each row; None where they are raw


class Blocks:
    """All record batches of a dataset. Threads may share it."""

    def __init__(self, folder: Folder, manifest: Manifest, indices: list[Index]):
        self.folder, self.manifest, self.columns = folder, manifest, manifest.actions.columns
        self.table = {key: np.concatenate([index.blocks[key] for index in indices]) for key in indices[0].blocks}
        self.shard_K = np.repeat(np.arange(len(indices)), [len(index.blocks["rows"]) for index in indices])
        self.ends_K = np.cumsum(self.table["rows"])
        self.starts_K = self.ends_K - self.table["rows"]
        self._files, self._blocks = Recent[RangeFile](OPEN_FILES), Recent[Block](BLOCKS)
        act_out = ("act_out", np.float32, (self.columns,))
        self.dtype = np.dtype([act_out, ("reward", np.float32), ("events", np.int64), ("act_known", bool)])

    def number(self, frame: np.ndarray | int) -> np.ndarray:
        """Of the blocks in which frames lie."""
        return np.searchsorted(self.ends_K, frame, side="right")

    def file(self, block: int) -> RangeFile:
        shard = int(self.shard_K[block])
        return self._files.get(shard, lambda: self.folder.open(self.manifest.shards[shard].file))

    def block(self, number: int) -> Block:
        """Raises `DataError` if it doesn't have its checksum."""
        return self._blocks.get(number, lambda: self._read(number))

    def _read(self, number: int) -> Block:
        at, file = {key: int(column[number]) for key, column in self.table.items()}, self.file(number)
        count = at["rows"]
        data = file.read(at["start"], at["frames"] - at["start"])
        if zlib.crc32(data) != at["crc32"]:
            raise DataError(f"'{file.name}' is damaged near byte {at['start']}: rows don't have their checksum")

        def column(name: str, dtype: type, values: int) -> np.ndarray:
            return np.frombuffer(data, np.dtype(dtype).newbyteorder("<"), values, at[name])

        rows = np.empty(count, self.dtype)
        rows["act_out"] = column("act_out", np.float32, count * self.columns).reshape(count, self.columns)
        rows["reward"], rows["events"] = column("reward", np.float32, count), column("events", np.int64, count)
        rows["act_known"] = np.unpackbits(column("act_known", np.uint8, -(-count // 8)), count=count, bitorder="little")
        ends = None if at["chunk_ends"] < 0 else column("chunk_ends", np.int64, count + 1)
        return Block(rows, column("chunk_crc32", np.uint32, count), ends)

    def take(self, index: np.ndarray) -> np.ndarray:
        """Small columns of frames at any positions, structured, `[*index.shape]`."""
        flat = index.reshape(-1)
        result, number = np.empty(flat.size, self.dtype), self.number(flat)
        for begin, end in runs(number):
            block = int(number[begin])
            result[begin:end] = self.block(block).rows_R[flat[begin:end] - self.starts_K[block]]
        return result.reshape(index.shape)


class Column(Rows):
    """One small column on the frame axis."""

    def __init__(self, fetch: Callable[[np.ndarray], np.ndarray], count: int, shape: tuple[int, ...], dtype: type):
        self._fetch, self.shape, self.dtype = fetch, (count, *shape), np.dtype(dtype)

    def take(self, index: np.ndarray) -> np.ndarray:
        self.check(index)
        return np.ascontiguousarray(self._fetch(index)).reshape(*index.shape, *self.shape[1:])


class Frames(Rows):
    """The frames of a dataset, uint8 `[F, H, W, C]`.

    Args:
        starts_E, lengths_E: of the episodes, which say where the chunks are.
        threads: that decode chunks side by side; 0 decodes in the caller's thread.
    """

    def __init__(self, blocks: Blocks, starts_E: np.ndarray, lengths_E: np.ndarray, threads: int = 0):
        self.blocks, self.recording = blocks, blocks.manifest.recording
        self.starts_E, self.lengths_E = starts_E, lengths_E
        self.shape, self.dtype = (int(lengths_E.sum()), *self.recording.frame), np.dtype(np.uint8)
        self.raw = self.recording.codec.kind == "raw"
        chunks_E = -(-lengths_E // self.recording.codec.chunk)
        self._chunks_E = np.cumsum(chunks_E) - chunks_E  # before each episode
        self._checked = np.zeros(int(chunks_E.sum()) if self.raw else 0, bool)
        self._pool = ThreadPoolExecutor(threads, "decode") if threads else None

    def take(self, index: np.ndarray) -> np.ndarray:
        """Raises `DataError`, naming file and byte, if a chunk doesn't have its checksum or can't be decoded."""
        self.check(index)
        flat, size = index.reshape(-1), self.recording.codec.chunk
        result = np.empty((flat.size, *self.shape[1:]), np.uint8)
        episode = np.searchsorted(self.starts_E, flat, side="right") - 1
        place = (flat - self.starts_E[episode]) // size
        chunk = self._chunks_E[episode] + place
        if self.raw and flat.size and self._checked[chunk].all():
            tasks = self._stretches(flat, result)
        else:
            tasks = [
                partial(self._read, int(episode[begin]), int(place[begin]), flat[begin:end], result[begin:end])
                for begin, end in runs(chunk)
            ]
        for _ in map(_call, tasks) if self._pool is None else self._pool.map(_call, tasks):
            pass
        return result.reshape(*index.shape, *self.shape[1:])

    def _stretches(self, flat: np.ndarray, result: np.ndarray) -> list[Callable[[], None]]:
        """Raw frames that were checked before are read in as few pieces as they lie in, into their place."""
        number = self.blocks.number(flat)
        width = self.recording.frame_bytes
        start = self.blocks.table["frames"][number] + (flat - self.blocks.starts_K[number]) * width
        gaps = (np.diff(flat) != 1) | (np.diff(number) != 0)
        return [
            partial(self.blocks.file(int(number[begin])).read_into, int(start[begin]), result[begin:end].data.cast("B"))
            for begin, end in runs(np.concatenate([[0], np.cumsum(gaps)]))
        ]

    def _read(self, episode: int, place: int, frames: np.ndarray, out: np.ndarray) -> None:
        """Frames of one chunk, number `place` of the episode."""
        size = self.recording.codec.chunk
        first = int(self.starts_E[episode]) + place * size
        count = min(size, int(self.lengths_E[episode]) - place * size)
        number = int(self.blocks.number(first))
        rows, row = frames - first, first - int(self.blocks.starts_K[number])
        if self.raw:
            self._read_raw(number, row, count, int(self._chunks_E[episode]) + place, rows, out)
            return
        neighbours = rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all())
        low = int(rows.min())
        blob, where = self._coded(number, row)
        target = out if neighbours else np.empty((int(rows.max()) + 1 - low, *self.shape[1:]), np.uint8)
        try:
            self.recording.codec.decode(memoryview(blob), count, low, target)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        if not neighbours:
            out[:] = target[rows - low]

    def blob(self, episode: int, place: int) -> tuple[bytes, int]:
        """A chunk, number `place` of an episode, as it is in the file, and its checksum; raises `DataError` if it
        hasn't got that.
        """
        first = int(self.starts_E[episode]) + place * self.recording.codec.chunk
        if self.raw:
            stop = int(self.starts_E[episode]) + int(self.lengths_E[episode])
            blob = self.between(first, min(first + self.recording.codec.chunk, stop)).tobytes()
        else:
            number = int(self.blocks.number(first))
            blob = bytes(self._coded(number, first - int(self.blocks.starts_K[number]))[0])
        return blob, zlib.crc32(blob)

    def _coded(self, number: int, row: int) -> tuple[bytearray, str]:
        """The chunk that begins in a row of a block, and where it is, for errors."""
        block, file = self.blocks.block(number), self.blocks.file(number)
        assert block.ends_R is not None
        start, stop = int(block.ends_R[row]), int(block.ends_R[row + 1])
        origin = int(self.blocks.table["frames"][number])
        limit = self.blocks.manifest.shards[int(self.blocks.shard_K[number])].bytes
        if not 0 <= start <= stop <= limit - origin:
            raise DataError(f"'{file.name}' is damaged: a chunk is said to lie at bytes {start} to {stop} of its block")
        blob = file.read(origin + start, stop - start)
        self._compare(zlib.crc32(blob), int(block.crc_R[row]), file, origin + start)
        return blob, f"'{file.name}', chunk at byte {origin + start}"

    def _read_raw(self, number: int, row: int, count: int, chunk: int, rows: np.ndarray, out: np.ndarray) -> None:
        """A chunk that was not read before, as a whole."""
        file, width = self.blocks.file(number), self.recording.frame_bytes
        start = int(self.blocks.table["frames"][number]) + row * width
        data = file.read(start, count * width)
        self._compare(zlib.crc32(data), int(self.blocks.block(number).crc_R[row]), file, start)
        self._checked[chunk] = True
        out[:] = np.frombuffer(data, np.uint8).reshape(count, *self.shape[1:])[rows]

    @staticmethod
    def _compare(found: int, wanted: int, file: RangeFile, offset: int) -> None:
        if found != wanted:
            raise DataError(f"'{file.name}' is damaged near byte {offset}: frames don't have their checksum")


def _call(task: Callable[[], None]) -> None:
    task()
