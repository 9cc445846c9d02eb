"""The format of a dataset: a folder of Arrow IPC files, one row per frame, and `manifest.json`, which is written last.

Rows are in storage order: `act_out` is chosen at the row's frame, `reward` and `terminal` are on arrival at it (timing
contract of `dreamer4.types`). Nothing is compressed, so a memory map of a file is its arrays. Whole episodes lie in
one record batch. Any Arrow library reads the files; nothing in them is pickled.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from dreamer4.actions import ActionSpace
from dreamer4.errors import DataError, RunError
from dreamer4.files import read_json

FORMAT = "dreamer4-episodes"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"

Frame = tuple[int, int, int]


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.arrow"


@dataclass(frozen=True)
class Recording:
    """What all shards of a dataset have in common."""

    env: str
    frame: Frame  # H, W, C
    actions: ActionSpace
    tasks: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.frame) != 3 or min(self.frame) < 1:
            raise DataError(f"frames are [height, width, channels], all at least 1; got {tuple(self.frame)}")
        if not self.tasks:
            raise DataError("a dataset has at least one task; name it even if there is only one")

    @property
    def frame_bytes(self) -> int:
        return self.frame[0] * self.frame[1] * self.frame[2]

    def arrow_schema(self) -> pa.Schema:
        return pa.schema(
            [
                pa.field("frame", pa.binary(self.frame_bytes), nullable=False),
                pa.field("act_out", pa.list_(pa.float32(), self.actions.columns), nullable=False),
                pa.field("act_known", pa.bool_(), nullable=False),
                pa.field("reward", pa.float32(), nullable=False),
                pa.field("terminal", pa.bool_(), nullable=False),
                pa.field("first", pa.bool_(), nullable=False),
                pa.field("episode", pa.int64(), nullable=False),
                pa.field("task", pa.int32(), nullable=False),
                pa.field("success", pa.bool_(), nullable=False),
                pa.field("source", pa.dictionary(pa.int32(), pa.string()), nullable=False),
            ]
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "env": self.env,
            "frame": list(self.frame),
            "actions": self.actions.to_json(),
            "tasks": list(self.tasks),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        height, width, channels = record["frame"]
        space = ActionSpace.from_json(record["actions"])
        return cls(record["env"], (height, width, channels), space, tuple(record["tasks"]))

    def difference(self, other: "Recording") -> str | None:
        """The first field in which two recordings differ, with both values; None if they fit."""
        mine, theirs = self.to_json(), other.to_json()
        return next((f"{key} is {mine[key]}, not {theirs[key]}" for key in mine if mine[key] != theirs[key]), None)


@dataclass(frozen=True)
class Shard:
    """One file, with the sums that the statistics of the dataset are made of."""

    file: str
    first_episode: int
    episodes: int
    frames: int
    bytes: int
    crc32: int
    successes: int
    return_sum: float
    return_square_sum: float


@dataclass(frozen=True)
class Manifest:
    """The table of contents of a dataset, `manifest.json`."""

    recording: Recording
    shards: tuple[Shard, ...]
    version: int = FORMAT_VERSION

    @property
    def env(self) -> str:
        return self.recording.env

    @property
    def frame(self) -> Frame:
        return self.recording.frame

    @property
    def actions(self) -> ActionSpace:
        return self.recording.actions

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.recording.tasks

    @property
    def episodes(self) -> int:
        return sum(shard.episodes for shard in self.shards)

    @property
    def frames(self) -> int:
        return sum(shard.frames for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Changes with any byte of any shard: what latents remember of the frames that they encode."""
        sums = " ".join(f"{shard.crc32:08x}:{shard.bytes}" for shard in self.shards)
        return f"{zlib.crc32(sums.encode()):08x}"

    @property
    def statistics(self) -> dict[str, float]:
        """Over episodes: mean and standard deviation of the return, share of successes, mean length in frames."""
        count = max(self.episodes, 1)
        mean = sum(shard.return_sum for shard in self.shards) / count
        square = sum(shard.return_square_sum for shard in self.shards) / count
        return {
            "return_mean": mean,
            "return_std": max(square - mean**2, 0.0) ** 0.5,
            "success_share": sum(shard.successes for shard in self.shards) / count,
            "length_mean": self.frames / count,
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": self.version,
            **self.recording.to_json(),
            "episodes": self.episodes,
            "frames": self.frames,
            "statistics": self.statistics,
            "shards": [asdict(shard) for shard in self.shards],
        }

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises `DataError` naming the file if there is no dataset in the folder or none of this version."""
        record = read_manifest(Path(folder) / MANIFEST, FORMAT, FORMAT_VERSION)
        try:
            manifest = cls(Recording.from_json(record), tuple(Shard(**shard) for shard in record["shards"]))
            totals = record["episodes"], record["frames"]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"'{Path(folder) / MANIFEST}' lacks a field or holds a bad one: {error}") from error
        if totals != (manifest.episodes, manifest.frames):
            raise DataError(
                f"'{Path(folder) / MANIFEST}' says {totals[0]} episodes and {totals[1]} frames, "
                f"its shards hold {manifest.episodes} and {manifest.frames}"
            )
        return manifest


def read_manifest(path: Path, name: str, version: int) -> dict[str, Any]:
    """The JSON of a manifest of that format and version, or a `DataError` that says what is there instead."""
    if not path.is_file():
        raise DataError(f"'{path.parent}' holds no finished dataset: '{path.name}' is missing, and it is written last")
    try:
        record = read_json(path)
    except RunError as error:
        raise DataError(str(error)) from error
    if not isinstance(record, dict) or record.get("format") != name:
        raise DataError(f"'{path}' is not the manifest of a '{name}' dataset")
    if record.get("version") != version:
        raise DataError(f"'{path}' is of format version {record.get('version')}; this program reads version {version}")
    return record


def crc32_of(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return checksum


def open_arrow(path: Path, size: int, schema: pa.Schema | None = None) -> pa.RecordBatchFileReader:
    """Maps an Arrow file of `size` bytes into memory; its arrays are views of the map.

    Raises:
        DataError: it is missing, has another size or other columns, or is damaged; the message names it.
    """
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(f"can't read '{path}', which the manifest names: {error.strerror or error}") from error
    if found != size:
        raise DataError(f"'{path}' has {found} bytes, the manifest says {size}: it was cut or replaced; write it again")
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"'{path}' is damaged or not an Arrow file: {error}") from error
    if schema is not None and not reader.schema.equals(schema):
        raise DataError(f"'{path}' has columns {reader.schema.names} of other types than its manifest implies")
    return reader


def binary_rows(column: pa.Array, dtype: np.dtype, shape: Sequence[int]) -> np.ndarray:
    """A fixed-size binary column as an array `[rows, *shape]`, without a copy."""
    width = int(np.prod(shape)) * dtype.itemsize
    data = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
    return data.view(dtype).reshape(len(column), *shape)
