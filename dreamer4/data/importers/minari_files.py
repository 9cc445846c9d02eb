"""One episode of a Minari dataset on disk, read piece by piece."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from dreamer4.data.importers.hdf5 import Hdf5Reader
from dreamer4.data.importers.steps import PART_FRAMES
from dreamer4.errors import DataError

HDF5 = "main_data.hdf5"

Record = dict[str, Any]


@dataclass(frozen=True)
class StoredEpisode:
    """Values are arrays over time, in dicts and lists where the space is of Dict or Tuple."""

    count: int  # actions; observations are one more
    column: Callable[[str], np.ndarray]  # a whole column of numbers
    pieces: Callable[[], Iterator[tuple[Any, Any]]]  # observations and actions of the next rows


def hdf5_episode(reader: Hdf5Reader, number: int) -> StoredEpisode:
    """Raises `DataError`, naming the file, if it or the episode is missing or damaged; as reading from it does."""
    group = f"episode_{number}"
    count = reader.length(f"{group}/rewards")

    def pieces() -> Iterator[tuple[Any, Any]]:
        for start in range(0, count + 1, PART_FRAMES):
            stop = min(start + PART_FRAMES, count + 1)
            seen = reader.read(f"{group}/observations", start, stop)
            yield seen, reader.read(f"{group}/actions", start, min(stop, count))

    return StoredEpisode(count, lambda name: reader.read(f"{group}/{name}"), pieces)


@contextmanager
def arrow_episode(folder: Path, form: str, observations: Record, actions: Record) -> Iterator[StoredEpisode]:
    """A folder with the files of one episode, whose last row has an observation only.

    Args:
        form: "arrow" or "parquet".
        observations, actions: their spaces as Minari's metadata describe them; Arrow keeps arrays flat.

    Raises:
        DataError: naming the folder: it is missing, empty or damaged.
    """

    def column(name: str) -> np.ndarray:
        return rows.to_table(columns=[name])[name].to_numpy()[:count]

    def pieces() -> Iterator[tuple[Any, Any]]:
        given = 0
        for batch in rows.to_batches(columns=["observations", "actions"], batch_size=PART_FRAMES):
            acts = batch.column("actions")[: count - given]
            given += batch.num_rows
            yield _values(batch.column("observations"), observations), _values(acts, actions)

    try:
        files = sorted(str(path) for path in folder.glob(f"*.{form}"))
        if not files:
            raise DataError(f"'{folder}' holds no .{form} file of a Minari episode")
        rows = pyarrow.dataset.dataset(files, format=form)
        count = rows.count_rows() - 1
        if count < 0:
            raise DataError(f"'{folder}' holds no row")
        yield StoredEpisode(count, column, pieces)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"'{folder}' is damaged or lacks a column: {error}") from error


def _values(values: Any, space: Record) -> Any:
    if pa.types.is_struct(values.type):
        below = space.get("subspaces", {})
        if isinstance(below, list):  # a tuple
            return [_values(values.field(str(index)), inner) for index, inner in enumerate(below)]
        names = [values.type.field(index).name for index in range(values.type.num_fields)]
        return {name: _values(values.field(name), below.get(name, {})) for name in names}
    if pa.types.is_fixed_size_list(values.type):
        flat = values.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(values), *space.get("shape", [values.type.list_size]))
    if pa.types.is_binary(values.type):
        return values.to_pylist()
    return values.to_numpy(zero_copy_only=False)
