"""Parts of episodes to rows of Arrow columns, after a check of the timing contract."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dreamer4.data.schema import Recording
from dreamer4.errors import DataError
from dreamer4.types import EpisodePart


def check_part(part: EpisodePart, recording: Recording, number: int, first: bool) -> None:
    """Raises `DataError`, naming episode and field, if a part doesn't fit or breaks the timing contract.

    Args:
        number: of the episode.
        first: the episode begins with it.
    """
    frames, length = part.frames_THWC, part.length
    if frames.dtype != np.uint8 or frames.shape[1:] != recording.frame or length < 1:
        raise DataError(
            f"episode {number} has frames {frames.dtype} {frames.shape}, the dataset takes uint8 frames of "
            f"{recording.frame}"
        )
    shapes = {
        "act_out_TA": (part.act_out_TA.shape, (length, recording.actions.columns)),
        "act_known_T": (part.act_known_T.shape, (length,)),
        "reward_T": (part.reward_T.shape, (length,)),
    }
    if part.events_TK is not None:
        shapes["events_TK"] = (part.events_TK.shape, (length, len(recording.tasks)))
    for name, (shape, wanted) in shapes.items():
        if shape != wanted:
            raise DataError(f"episode {number} has {name} of shape {shape}; its {length} frames need {wanted}")
    if part.end is not None and part.act_known_T[-1]:
        raise DataError(
            f"episode {number} knows an action at its last frame: {length} frames carry {length - 1} actions"
        )
    if not np.isfinite(part.reward_T).all():
        raise DataError(f"episode {number} holds a reward that is not finite")
    if first and part.reward_T[0] != 0:
        raise DataError(
            f"episode {number} has reward {part.reward_T[0]:g} at its first frame; rewards are on arrival, "
            "so the first frame has none: shift them by one frame"
        )
    try:
        recording.actions.check(part.act_out_TA[part.act_known_T.astype(bool)])
    except DataError as error:
        raise DataError(f"episode {number}: {error}") from error


@dataclass(frozen=True)
class Rows:
    """The small columns of some frames of an episode."""

    act_out_TA: np.ndarray  # float32, 0 where it isn't known
    act_known_T: np.ndarray  # bool
    reward_T: np.ndarray  # float32
    events_T: np.ndarray  # int64, bit k: task k's goal was reached

    @classmethod
    def of(cls, part: EpisodePart) -> "Rows":
        known = part.act_known_T.astype(bool)
        act_out = np.where(known[:, None], part.act_out_TA, 0).astype(np.float32)
        events = np.zeros(part.length, np.int64)
        if part.events_TK is not None:
            events = part.events_TK.astype(bool) @ (1 << np.arange(part.events_TK.shape[1]))
        return cls(act_out, known, part.reward_T.astype(np.float32), events)

    @classmethod
    def joined(cls, many: Sequence["Rows"]) -> "Rows":
        names = ("act_out_TA", "act_known_T", "reward_T", "events_T")
        return cls(*(np.concatenate([getattr(one, name) for one in many]) for name in names))

    def between(self, start: int, stop: int) -> "Rows":
        chosen = slice(start, stop)
        return Rows(self.act_out_TA[chosen], self.act_known_T[chosen], self.reward_T[chosen], self.events_T[chosen])

    def __len__(self) -> int:
        return len(self.reward_T)


@dataclass(frozen=True)
class Chunk:
    """A chunk of an episode on its way to the file."""

    rows: Rows
    blob: bytes
    crc32: int
    episode: int
    first: bool  # it begins the episode
    terminal: bool  # it ends the episode, on a terminal frame
    truncated: bool
    task: int
    success: bool
    source: str


def record_batch(chunks: Sequence[Chunk], recording: Recording, sources: dict[str, int]) -> pa.RecordBatch:
    """Rows of whole chunks. New names of `source` are numbered in `sources`, which grows from batch to batch."""
    rows = Rows.joined([chunk.rows for chunk in chunks])
    lengths = np.array([len(chunk.rows) for chunk in chunks])
    ends = np.cumsum(lengths)
    count, schema = int(ends[-1]), recording.arrow_schema()

    def repeated(name: str, dtype: type) -> pa.Array:
        return pa.array(np.repeat(np.array([getattr(chunk, name) for chunk in chunks], dtype), lengths))

    def placed(name: str, dtype: type, places: np.ndarray) -> np.ndarray:
        column = np.zeros(count, dtype)
        column[places] = [getattr(chunk, name) for chunk in chunks]
        return column

    begins, lasts = ends - lengths, ends - 1
    codes = np.repeat([sources.setdefault(chunk.source, len(sources)) for chunk in chunks], lengths)
    columns = [
        repeated("episode", np.int64),
        pa.array(placed("first", bool, begins)),
        pa.FixedSizeListArray.from_arrays(pa.array(rows.act_out_TA.reshape(-1)), type=schema.field("act_out").type),
        pa.array(rows.act_known_T),
        pa.array(rows.reward_T),
        pa.array(placed("terminal", bool, lasts)),
        pa.array(placed("truncated", bool, lasts)),
        pa.array(rows.events_T),
        repeated("task", np.int32),
        repeated("success", bool),
        pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(list(sources), pa.string())),
        pa.array(placed("crc32", np.uint32, begins)),
        _frames(chunks, recording, begins, count),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _frames(chunks: Sequence[Chunk], recording: Recording, begins: np.ndarray, count: int) -> pa.Array:
    """Raw frames row by row; otherwise each chunk in the row of its first frame and nothing in its other rows."""
    data = pa.py_buffer(b"".join(chunk.blob for chunk in chunks))
    if recording.codec.kind == "raw":
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(recording.frame_bytes), count, [None, data])
    sizes, valid = np.zeros(count, np.int64), np.zeros(count, bool)
    sizes[begins], valid[begins] = [len(chunk.blob) for chunk in chunks], True
    offsets = pa.py_buffer(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))
    bits = pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), count, [bits, offsets, data])
