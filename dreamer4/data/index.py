"""The index of a shard: which episodes it holds, and where in the file every block of rows lies.

It is an Arrow file of one row with two lists, `episodes` and `blocks`. With it a few frames are read from the middle of
a shard without its footer, its schema or anything between, from a disk or by a range request.
"""

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dreamer4.data.schema import Recording
from dreamer4.errors import DataError

EPISODE = pa.struct(
    [
        ("length", pa.int64()),
        ("task", pa.int32()),
        ("success", pa.bool_()),
        ("terminal", pa.bool_()),
        ("truncated", pa.bool_()),
        ("known", pa.int64()),  # frames with an action
        ("episode_return", pa.float64()),
        ("source", pa.string()),
        ("event_frames", pa.list_(pa.int64())),  # in ascending order, of the episode
        ("event_tasks", pa.list_(pa.int32())),
    ]
)
COLUMNS = ("act_out", "act_known", "reward", "events", "chunk_crc32")  # what training reads beside the frames
BLOCK = pa.struct(
    [
        ("rows", pa.int64()),
        ("start", pa.int64()),  # byte of the file at which the small columns begin
        ("frames", pa.int64()),  # byte at which they end and the frames begin
        ("crc32", pa.int64()),  # of the bytes between
        *((name, pa.int64()) for name in (*COLUMNS, "chunk_ends")),  # from `start`; -1: there is none
    ]
)
SCHEMA = pa.schema([pa.field("episodes", pa.list_(EPISODE)), pa.field("blocks", pa.list_(BLOCK))])


@dataclass(frozen=True)
class EpisodeRow:
    """What the index says of an episode; made by the writer."""

    length: int
    task: int
    success: bool
    terminal: bool
    truncated: bool
    known: int
    episode_return: float
    source: str
    event_frames: list[int]
    event_tasks: list[int]


def write_index(path: Path, episodes: Sequence[EpisodeRow], shard: Path) -> None:
    """Writes the index of a shard that is complete on the disk."""
    blocks = _locate(shard)
    table = pa.table(
        [pa.array([[asdict(one) for one in episodes]], pa.list_(EPISODE)), pa.array([blocks], pa.list_(BLOCK))],
        schema=SCHEMA,
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as file:
        file.write_table(table)


def _locate(shard: Path) -> list[dict[str, int]]:
    """Where the columns of every record batch of an Arrow file lie, from the addresses of its memory map."""
    blocks = []
    with pa.memory_map(str(shard)) as mapped:
        origin = mapped.read_buffer().address
        mapped.seek(0)
        reader = pa.ipc.open_file(mapped)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            places = {name: _values(batch.column(name)) for name in COLUMNS}
            frames = batch.column(batch.num_columns - 1)
            data = frames.buffers()[-1]
            ends = frames.buffers()[1] if len(frames.buffers()) > 2 else None
            start = min(place.address for place in places.values())
            small = mapped.read_at(data.address - start, start - origin)
            blocks.append(
                {
                    "rows": batch.num_rows,
                    "start": start - origin,
                    "frames": data.address - origin,
                    "crc32": zlib.crc32(small),
                    **{name: place.address - start for name, place in places.items()},
                    "chunk_ends": -1 if ends is None else ends.address - start,
                }
            )
    return blocks


def _values(column: pa.Array) -> pa.Buffer:
    return column.buffers()[-1]


@dataclass(frozen=True)
class Index:
    """The index of a shard as arrays: suffix `E` per episode, `K` per block, `V` per event."""

    length_E: np.ndarray
    task_E: np.ndarray
    success_E: np.ndarray
    terminal_E: np.ndarray
    truncated_E: np.ndarray
    known_E: np.ndarray
    return_E: np.ndarray
    source_E: pa.DictionaryArray
    event_frame_V: np.ndarray  # of the shard
    event_task_V: np.ndarray
    blocks: dict[str, np.ndarray]


def read_index(data: bytes, name: str, recording: Recording, episodes: int, frames: int, size: int) -> Index:
    """Parses and checks an index.

    Args:
        name: of the file, for errors.
        size: of the shard in bytes.

    Raises:
        DataError: it is damaged, or says what can't be true of a shard of so many episodes, frames and bytes.
    """
    try:
        reader = pa.ipc.open_file(pa.py_buffer(data))
        if not reader.schema.equals(SCHEMA) or reader.num_record_batches != 1:
            raise DataError(f"'{name}' is not the index of a shard")
        batch = reader.get_batch(0)
        batch.validate(full=True)
        index = _as_arrays(batch)
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise DataError(f"'{name}' is damaged: {error}") from error
    rows_K, start_K, frames_K = (index.blocks[key] for key in ("rows", "start", "frames"))
    problems = {
        "episodes": len(index.length_E) != episodes or index.length_E.sum() != frames or (index.length_E < 1).any(),
        "blocks": rows_K.sum() != frames or (rows_K < 1).any(),
        "places": (start_K < 0).any() or (frames_K < start_K).any() or (frames_K > size).any(),
        "tasks": ((index.task_E < 0) | (index.task_E >= len(recording.tasks))).any(),
        "events": ((index.event_task_V < 0) | (index.event_task_V >= len(recording.tasks))).any(),
        "event frames": ((index.event_frame_V < 0) | (index.event_frame_V >= frames)).any(),
    }
    widths = {"act_out": 4 * recording.actions.columns, "act_known": 1 / 8, "reward": 4, "events": 8, "chunk_crc32": 4}
    coded = recording.codec.kind != "raw"
    for key, width in {**widths, **({"chunk_ends": 8} if coded else {})}.items():
        first, need = index.blocks[key], np.ceil(rows_K * width).astype(np.int64)
        problems[key] = (first < 0).any() or (first + need > frames_K - start_K).any()
    if wrong := [key for key, bad in problems.items() if bad]:
        raise DataError(f"'{name}' doesn't fit its shard: its {', '.join(wrong)} can't be true; write the shard again")
    return index


def _as_arrays(batch: pa.RecordBatch) -> Index:
    one = batch.column("episodes").flatten()
    blocks = batch.column("blocks").flatten()
    fields = [*one.flatten(), *blocks.flatten()]
    if batch.num_rows != 1 or any(part.null_count for part in (one, blocks, *fields)):
        raise ValueError("it has rows without a value")

    def column(name: str) -> np.ndarray:
        return one.field(name).to_numpy(zero_copy_only=False)

    events, length_E = one.field("event_frames"), column("length")
    counts = np.diff(events.offsets.to_numpy())
    starts = np.cumsum(length_E) - length_E
    event_frame, event_task = events.flatten().to_numpy(), one.field("event_tasks").flatten().to_numpy()
    if len(event_frame) != len(event_task):
        raise ValueError("events don't have one task each")
    return Index(
        length_E,
        column("task"),
        column("success").astype(bool),
        column("terminal").astype(bool),
        column("truncated").astype(bool),
        column("known"),
        column("episode_return"),
        one.field("source").dictionary_encode(),
        np.repeat(starts, counts) + event_frame,
        event_task,
        {field.name: blocks.field(field.name).to_numpy(zero_copy_only=False) for field in BLOCK},
    )
