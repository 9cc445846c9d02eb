"""One episode on its way into a shard: nothing of it is in the shard before its last part has come.

Small columns are in memory, frames are kept as they will be in the file, in memory up to 32 MiB and then in a file
without a name, which vanishes with the process. So an episode may be hours long and its writer may be killed.
"""

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import SpooledTemporaryFile

import numpy as np

from dreamer4.data.index import EpisodeRow
from dreamer4.data.schema import Recording
from dreamer4.data.table import Chunk, Rows, check_part
from dreamer4.errors import DataError, RunError
from dreamer4.types import Ending, EpisodePart

MEMORY = 32 << 20
MEASURED_EVERY = 16  # chunks of an episode, of which one is decoded again


class Spool:
    """Takes the parts of an episode in and gives its chunks out. Use it in a `with` block.

    Args:
        number: of the episode in the dataset.
        folder: of the shard, where there is room for it.

    Raises:
        DataError: there is no such task.
    """

    def __init__(self, recording: Recording, number: int, task: int, source: str, folder: Path):
        if not 0 <= task < len(recording.tasks):
            raise DataError(f"episode {number} is of task {task}; the dataset has {len(recording.tasks)} tasks")
        self.recording, self.number, self.task, self.source = recording, number, task, source
        self.end: Ending | None = None
        self.pixels = np.zeros((3, recording.frame[2]))  # of the chunks' first frames: how many, sum, sum of squares
        self.errors: list[float] = []  # mean squared, in [0, 1], of some chunks of video
        self._rows: list[Rows] = []
        self._sizes: list[int] = []
        self._waiting: list[np.ndarray] = []
        self._file = SpooledTemporaryFile(MEMORY, dir=str(folder))  # noqa: SIM115

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def length(self) -> int:
        return sum(len(rows) for rows in self._rows)

    def take(self, parts: Iterable[EpisodePart]) -> None:
        """All parts of the episode.

        Raises:
            DataError: a part doesn't fit or breaks the timing contract, or the last one isn't marked.
            RunError: the disk is full or can't be written.
        """
        for part in parts:
            if self.end is not None:
                raise DataError(f"episode {self.number} goes on after a part with an end: end it with its last part")
            check_part(part, self.recording, self.number, first=not self._rows)
            self._rows.append(Rows.of(part))
            self._waiting.append(part.frames_THWC)
            self.end = part.end
            self._encode()
        if self.end is None:
            raise DataError(
                f"episode {self.number} stopped after {self.length} frames without a last part: the part that ends it "
                "has to have an end"
            )

    def _encode(self) -> None:
        """Whole chunks of what waits; the last one may be shorter."""
        size = self.recording.codec.chunk
        waiting = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)
        stop = len(waiting) if self.end is not None else len(waiting) - len(waiting) % size
        for start in range(0, stop, size):
            frames = waiting[start : min(start + size, stop)]
            blob = self.recording.codec.encode(frames)
            self._sizes.append(len(blob))
            unit = frames[0].reshape(-1, frames.shape[-1]) / 255
            self.pixels += [np.full(frames.shape[-1], len(unit)), unit.sum(axis=0), (unit**2).sum(axis=0)]
            try:
                self._file.write(blob)
            except OSError as error:
                raise RunError(f"can't keep episode {self.number} on the disk: {error.strerror or error}") from error
            self._measure(frames, blob)
        self._waiting = [waiting[stop:]] if stop < len(waiting) else []

    def _measure(self, frames: np.ndarray, blob: bytes) -> None:
        if self.recording.codec.lossless or (len(self._sizes) - 1) % MEASURED_EVERY:
            return
        read = np.empty_like(frames)
        self.recording.codec.decode(memoryview(blob), len(frames), 0, read)
        difference = read.astype(np.float32) - frames
        self.errors.append(float(np.square(difference).mean(dtype=np.float64)) / 255**2)

    def chunks(self) -> Iterator[Chunk]:
        """Of the whole episode, in order."""
        assert self.end is not None
        rows, size = Rows.joined(self._rows), self.recording.codec.chunk
        self._file.seek(0)
        for number, bytes_ in enumerate(self._sizes):
            blob, last = self._file.read(bytes_), number == len(self._sizes) - 1
            yield Chunk(
                rows=rows.between(number * size, (number + 1) * size),
                blob=blob,
                crc32=zlib.crc32(blob),
                episode=self.number,
                first=number == 0,
                terminal=last and self.end.terminal,
                truncated=last and self.end.truncated,
                task=self.task,
                success=self.end.success,
                source=self.source,
            )

    def actions(self) -> np.ndarray:
        """`[2, A]`: sums of the known actions and of their squares."""
        rows = Rows.joined(self._rows)
        known = rows.act_out_TA[rows.act_known_T].astype(np.float64)
        return np.stack([known.sum(axis=0), (known**2).sum(axis=0)])

    def row(self) -> EpisodeRow:
        assert self.end is not None
        rows = Rows.joined(self._rows)
        frames = np.flatnonzero(rows.events_T)
        events = [(t, k) for t in frames.tolist() for k in range(63) if rows.events_T[t] >> k & 1]
        return EpisodeRow(
            length=len(rows),
            task=self.task,
            success=bool(self.end.success),
            terminal=bool(self.end.terminal),
            truncated=bool(self.end.truncated),
            known=int(rows.act_known_T.sum()),
            episode_return=float(rows.reward_T[1:].sum(dtype=np.float64)),
            source=self.source,
            event_frames=[t for t, _ in events],
            event_tasks=[k for _, k in events],
        )
