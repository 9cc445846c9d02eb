"""One episode of a Minari dataset on disk, read piece by piece."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset

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


@contextmanager
def hdf5_episode(path: Path, number: int) -> Iterator[StoredEpisode]:
    """Raises `DataError`, naming the file, if it or the episode is missing or damaged, or h5py isn't installed."""
    try:
        import h5py
    except ImportError:
        raise DataError("Minari datasets in HDF5 need h5py: pip install 'dreamer4-ray[minari]'") from None

    def nested(node: Any, rows: slice) -> Any:
        if not isinstance(node, h5py.Group):
            return node[rows]
        found = {key: nested(inner, rows) for key, inner in node.items()}
        if "_index_0" in found:  # a tuple
            return [found[f"_index_{index}"] for index in range(len(found))]
        return found

    def pieces() -> Iterator[tuple[Any, Any]]:
        for start in range(0, count + 1, PART_FRAMES):
            stop = min(start + PART_FRAMES, count + 1)
            yield (
                nested(group["observations"], slice(start, stop)),
                nested(group["actions"], slice(start, min(stop, count))),
            )

    try:
        with h5py.File(path, "r") as file:
            group: Any = file[f"episode_{number}"]
            count = len(group["rewards"])
            yield StoredEpisode(count, lambda name: np.asarray(group[name][:]), pieces)
    except (KeyError, OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"'{path}' is damaged, or lacks a part of episode {number}: {error}") from error


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
