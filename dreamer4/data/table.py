"""Episodes to rows of Arrow columns, after a check of the timing contract."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from dreamer4.data.schema import Recording
from dreamer4.errors import DataError
from dreamer4.types import Episode


def check_episode(episode: Episode, recording: Recording, number: int) -> None:
    """Raises `DataError`, naming episode and field, if it doesn't fit or breaks the timing contract."""
    frames, length = episode.frames_THWC, episode.length
    if frames.dtype != np.uint8 or frames.shape[1:] != recording.frame or length < 1:
        raise DataError(
            f"episode {number} has frames {frames.dtype} {frames.shape}, the dataset takes uint8 frames of "
            f"{recording.frame}"
        )
    shapes = {
        "act_out_TA": (episode.act_out_TA.shape, (length, recording.actions.columns)),
        "act_known_T": (episode.act_known_T.shape, (length,)),
        "reward_T": (episode.reward_T.shape, (length,)),
    }
    for name, (shape, wanted) in shapes.items():
        if shape != wanted:
            raise DataError(f"episode {number} has {name} of shape {shape}; its {length} frames need {wanted}")
    if not 0 <= episode.task < len(recording.tasks):
        raise DataError(f"episode {number} is of task {episode.task}; the dataset has {len(recording.tasks)} tasks")
    if episode.act_known_T[-1]:
        raise DataError(
            f"episode {number} knows an action at its last frame: {length} frames carry {length - 1} actions"
        )
    if not np.isfinite(episode.reward_T).all():
        raise DataError(f"episode {number} holds a reward that is not finite")
    if episode.reward_T[0] != 0:
        raise DataError(
            f"episode {number} has reward {episode.reward_T[0]:g} at its first frame; rewards are on arrival, "
            "so the first frame has none: shift them by one frame"
        )
    try:
        recording.actions.check(episode.act_out_TA[episode.act_known_T.astype(bool)])
    except DataError as error:
        raise DataError(f"episode {number}: {error}") from error


def record_batch(
    episodes: Sequence[Episode], first_number: int, recording: Recording, sources: dict[str, int]
) -> pa.RecordBatch:
    """Rows of whole episodes. New names of `source` are numbered in `sources`, which grows from batch to batch."""
    lengths = [episode.length for episode in episodes]
    rows = sum(lengths)
    firsts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    lasts = np.cumsum(lengths) - 1
    known = np.concatenate([episode.act_known_T for episode in episodes]).astype(bool)
    act_out = np.concatenate([episode.act_out_TA for episode in episodes]).astype(np.float32)
    act_out[~known] = 0
    first, terminal = np.zeros(rows, bool), np.zeros(rows, bool)
    first[firsts] = True
    terminal[lasts] = [episode.terminal for episode in episodes]
    codes = [sources.setdefault(episode.source, len(sources)) for episode in episodes]

    def repeated(values: Iterable[int | bool], dtype: type) -> pa.Array:
        return pa.array(np.repeat(np.array(list(values), dtype), lengths))

    frames = np.concatenate([episode.frames_THWC for episode in episodes])
    schema = recording.arrow_schema()
    columns = [
        pa.FixedSizeBinaryArray.from_buffers(schema.field("frame").type, rows, [None, pa.py_buffer(frames)]),
        pa.FixedSizeListArray.from_arrays(pa.array(act_out.reshape(-1)), type=schema.field("act_out").type),
        pa.array(known),
        pa.array(np.concatenate([episode.reward_T for episode in episodes]).astype(np.float32)),
        pa.array(terminal),
        pa.array(first),
        repeated(range(first_number, first_number + len(episodes)), np.int64),
        repeated((episode.task for episode in episodes), np.int32),
        repeated((episode.success for episode in episodes), bool),
        pa.DictionaryArray.from_arrays(repeated(codes, np.int32), pa.array(list(sources), pa.string())),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
