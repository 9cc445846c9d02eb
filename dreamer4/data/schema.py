"""The format of a dataset: a folder of Arrow IPC files, one row per frame, and `manifest.json`, which is written last.

Rows are in storage order: `act_out` is chosen at the row's frame, `reward`, `terminal` and `events` are on arrival at
it (timing contract of `dreamer4.types`). Any Arrow library reads the files; nothing in them is pickled. The whole
description is docs/data-format.md.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from dreamer4.actions import ActionSpace
from dreamer4.data.codecs import Codec
from dreamer4.data.storage import Folder
from dreamer4.data.sums import alike, statistics_of
from dreamer4.errors import DataError

FORMAT = "dreamer4-episodes"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
MOST_TASKS = 63  # the bits of `events`

Frame = tuple[int, int, int]


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.arrow"


def index_name(index: int) -> str:
    return f"index-{index:05d}.arrow"


@dataclass(frozen=True)
class Recording:
    """What all shards of a dataset have in common."""

    env: str
    frame: Frame  # H, W, C
    actions: ActionSpace
    tasks: tuple[str, ...]
    codec: Codec = field(default_factory=Codec)

    def __post_init__(self) -> None:
        if len(self.frame) != 3 or min(self.frame) < 1:
            raise DataError(f"frames are [height, width, channels], all at least 1; got {tuple(self.frame)}")
        if not 1 <= len(self.tasks) <= MOST_TASKS:
            raise DataError(
                f"a dataset has 1 to {MOST_TASKS} tasks, got {len(self.tasks)}; name it even if there is one"
            )
        self.codec.check(self.frame)

    @property
    def frame_bytes(self) -> int:
        return self.frame[0] * self.frame[1] * self.frame[2]

    def arrow_schema(self) -> pa.Schema:
        """The frames come last: what lies before them in a file is small and read in one go."""
        raw = self.codec.kind == "raw"
        return pa.schema(
            [
                pa.field("episode", pa.int64(), nullable=False),
                pa.field("first", pa.bool_(), nullable=False),
                pa.field("act_out", pa.list_(pa.float32(), self.actions.columns), nullable=False),
                pa.field("act_known", pa.bool_(), nullable=False),
                pa.field("reward", pa.float32(), nullable=False),
                pa.field("terminal", pa.bool_(), nullable=False),
                pa.field("truncated", pa.bool_(), nullable=False),
                pa.field("events", pa.int64(), nullable=False),
                pa.field("task", pa.int32(), nullable=False),
                pa.field("success", pa.bool_(), nullable=False),
                pa.field("source", pa.dictionary(pa.int32(), pa.string()), nullable=False),
                pa.field("chunk_crc32", pa.uint32(), nullable=False),
                pa.field("frame", pa.binary(self.frame_bytes), nullable=False)
                if raw
                else pa.field("chunk", pa.large_binary(), nullable=True),
            ]
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "env": self.env,
            "frame": list(self.frame),
            "actions": self.actions.to_json(),
            "tasks": list(self.tasks),
            "codec": self.codec.to_json(),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        height, width, channels = record["frame"]
        space = ActionSpace.from_json(record["actions"])
        codec = Codec(**record["codec"])
        return cls(record["env"], (height, width, channels), space, tuple(record["tasks"]), codec)

    @property
    def crc32(self) -> int:
        """Of its JSON: a manifest has no file beside it that could prove names and action space wrong."""
        return zlib.crc32(json.dumps(self.to_json(), sort_keys=True).encode())

    def difference(self, other: "Recording") -> str | None:
        """The first field in which two recordings differ, with both values; None if they fit."""
        mine, theirs = self.to_json(), other.to_json()
        return next((f"{key} is {mine[key]}, not {theirs[key]}" for key in mine if mine[key] != theirs[key]), None)


@dataclass(frozen=True)
class Shard:
    """One file and its index, with the sums that the statistics of the dataset are made of.

    Pixel sums are over the first frame of every chunk, in [0, 1], per channel. The error of video is measured on some
    chunks: `error_sum` is the sum of the mean squared errors of `error_chunks` of them, 0 where nothing is lost.
    """

    file: str
    index: str
    first_episode: int
    episodes: int
    frames: int
    bytes: int
    crc32: int
    index_bytes: int
    index_crc32: int
    successes: int
    known: int  # frames with an action
    return_sum: float
    return_square_sum: float
    action_sum: tuple[float, ...]  # per column, over known actions
    action_square_sum: tuple[float, ...]
    pixels: int
    pixel_sum: tuple[float, ...]
    pixel_square_sum: tuple[float, ...]
    error_chunks: int
    error_sum: float

    def __post_init__(self) -> None:
        for name in ("action_sum", "action_square_sum", "pixel_sum", "pixel_square_sum"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        sizes = ("first_episode", "episodes", "frames", "bytes", "index_bytes")
        if any(not isinstance(getattr(self, name), int) or getattr(self, name) < 0 for name in sizes):
            raise ValueError(f"sizes of a shard are whole numbers from 0 on: {[getattr(self, name) for name in sizes]}")
        for name in (self.file, self.index):
            if not isinstance(name, str) or Path(name).name != name:
                raise ValueError(f"{name!r} is not the name of a file in the dataset's folder")


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
    def statistics(self) -> dict[str, Any]:
        """See `dreamer4.data.sums`."""
        return statistics_of(self.shards)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": self.version,
            **self.recording.to_json(),
            "recording_crc32": self.recording.crc32,
            "episodes": self.episodes,
            "frames": self.frames,
            "statistics": self.statistics,
            "shards": [asdict(shard) for shard in self.shards],
        }

    @classmethod
    def read(cls, folder: Folder) -> Self:
        """Raises `DataError` naming the file if there is no dataset in the folder or none of this version."""
        record, path = read_manifest(folder, FORMAT, FORMAT_VERSION), f"{folder.name}/{MANIFEST}"
        try:
            manifest = cls(Recording.from_json(record), tuple(Shard(**shard) for shard in record["shards"]))
            totals = record["episodes"], record["frames"]
        except (KeyError, TypeError, ValueError, AttributeError, DataError) as error:
            raise DataError(f"'{path}' lacks a field or holds a bad one: {error}") from error
        if totals != (manifest.episodes, manifest.frames):
            raise DataError(
                f"'{path}' says {totals[0]} episodes and {totals[1]} frames, "
                f"its shards hold {manifest.episodes} and {manifest.frames}"
            )
        if record.get("recording_crc32") != manifest.recording.crc32:
            raise DataError(f"'{path}' is damaged: its description of the recordings doesn't have its checksum")
        if not alike(record.get("statistics"), manifest.shards):
            raise DataError(f"'{path}' is damaged: its statistics are not those of the sums of its shards")
        firsts = np.cumsum([0, *(shard.episodes for shard in manifest.shards)])[:-1].tolist()
        if firsts != [shard.first_episode for shard in manifest.shards]:
            raise DataError(f"'{path}' is damaged: the numbers of its shards' first episodes don't continue each other")
        return manifest


def read_manifest(folder: Folder, name: str, version: int) -> dict[str, Any]:
    """The JSON of a manifest of that format and version, or a `DataError` that says what is there instead."""
    path = f"{folder.name}/{MANIFEST}"
    if folder.size(MANIFEST) is None:
        raise DataError(f"'{folder.name}' holds no finished dataset: '{MANIFEST}' is missing, and it is written last")
    try:
        record = json.loads(folder.read(MANIFEST))
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is not JSON: {error}") from error
    if not isinstance(record, dict) or record.get("format") != name:
        raise DataError(f"'{path}' is not the manifest of a '{name}' dataset")
    if record.get("version") != version:
        raise DataError(
            f"'{path}' is of format version {record.get('version')}; this program reads version {version}: "
            "record or import it again"
        )
    return record


def check_size(folder: Folder, file: str, size: int) -> None:
    """Raises `DataError` if a file that a manifest names is missing or has another size."""
    found = folder.size(file)
    if found is None:
        raise DataError(f"can't read '{folder.name}/{file}', which the manifest names: no such file")
    if found != size:
        raise DataError(
            f"'{folder.name}/{file}' has {found} bytes, the manifest says {size}: it was cut or "
            "replaced; write it again"
        )


def crc32_of(folder: Folder, file: str, size: int) -> int:
    checksum, source = 0, folder.open(file)
    for offset in range(0, size, 1 << 22):
        checksum = zlib.crc32(source.read(offset, min(1 << 22, size - offset)), checksum)
    return checksum
