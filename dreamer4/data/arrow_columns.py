"""The columns of a shard as any Arrow program reads them, compared with the index that our reader goes by."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.fault import Fault
from dreamer4.data.schema import Recording, Shard
from dreamer4.data.storage import Folder, RangeFile
from dreamer4.errors import DataError

NAMES = ("episode", "first", "act_known", "reward", "terminal", "truncated", "events", "task", "success", "source")


class Readable:
    """A range file as pyarrow wants files."""

    closed = False

    def __init__(self, file: RangeFile, size: int):
        self._file, self._size, self._place = file, size, 0

    def size(self) -> int:
        return self._size

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._place)
        size = left if size < 0 else min(size, left)
        data = bytes(self._file.read(self._place, size))
        self._place += size
        return data

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def close(self) -> None:
        pass


def batches(folder: Folder, shard: Shard, recording: Recording, names: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """Some columns, record batch by record batch. Raises `DataError` if it isn't a whole Arrow file of this schema."""
    try:
        source = pa.PythonFile(Readable(folder.open(shard.file), shard.bytes), "r")
        schema = pa.ipc.open_file(source).schema
        if not schema.equals(recording.arrow_schema()):
            raise DataError("its columns are not those of the format")
        source.seek(0)
        options = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in names])
        reader = pa.ipc.open_file(source, options=options)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            batch.validate(full=True)
            yield batch
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(f"can't be read as an Arrow file: {error}") from error


def column_faults(
    folder: Folder, shard: Shard, recording: Recording, data: EpisodeDataset, before: int
) -> Iterator[Fault]:
    """The first row of each column that isn't what the index says.

    Args:
        data: the shard alone.
        before: episodes of the dataset that come before it.
    """
    row, open_columns = 0, set(NAMES)
    origin = 0  # importers don't know how many episodes come before: any number may be the first
    try:
        for batch in batches(folder, shard, recording, NAMES):
            frames = np.arange(row, row + batch.num_rows)
            if row + batch.num_rows > data.frame_count:
                yield Fault("columns", shard.file, f"has more than the {data.frame_count} rows of its index")
                return
            if row == 0 and batch.num_rows:
                origin = batch.column("episode")[0].as_py() or 0
            wanted = _wanted(data, frames, origin)
            for name in sorted(open_columns):
                column = batch.column(name)
                if column.null_count:
                    yield Fault("columns", shard.file, f"'{name}' has rows without a value", None, row)
                    open_columns.discard(name)
                    continue
                found = np.array(column.to_pylist()) if name == "source" else column.to_numpy(zero_copy_only=False)
                same = np.array_equal(found, wanted[name], equal_nan=name == "reward")
                if same:
                    continue
                wrong = int(np.flatnonzero(found != wanted[name])[0])
                text = f"'{name}' is {found[wrong]}, by the index and the blocks it is {wanted[name][wrong]}"
                episode = before + int(data.episode_of(frames[wrong]))
                yield Fault("columns", shard.file, text, episode, row + wrong)
                open_columns.discard(name)
            row += batch.num_rows
        if row != data.frame_count:
            yield Fault("columns", shard.file, f"has {row} rows, its index has {data.frame_count}")
    except DataError as error:
        yield Fault("columns", shard.file, str(error))


def _wanted(data: EpisodeDataset, frames: np.ndarray, origin: int) -> dict[str, np.ndarray]:
    episode = data.episode_of(frames)
    rows = data.rows(frames)
    last = frames == data.starts_E[episode] + data.lengths_E[episode] - 1
    return {
        "episode": origin + episode,
        "first": data.is_first(frames),
        "act_known": rows["act_known"],
        "reward": rows["reward"],
        "terminal": last & data.terminal_E[episode],
        "truncated": last & data.truncated_E[episode],
        "events": rows["events"],
        "task": data.task_E[episode],
        "success": data.success_E[episode],
        "source": np.array([data.source(int(one)) for one in np.unique(episode)])[episode - episode[0]],
    }
