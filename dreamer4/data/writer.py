"""Writes episodes to disk. A killed writer leaves no half dataset: files are renamed when whole, the manifest is last.

One process writes with `DatasetWriter`. Several write side by side with `ShardWriter`, each its own numbered shards,
and `merge_shards` makes a dataset of them.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa

from dreamer4.actions import ActionSpace
from dreamer4.data.schema import MANIFEST, Manifest, Recording, Shard, crc32_of, shard_name
from dreamer4.data.table import check_episode, record_batch
from dreamer4.errors import DataError, RunError
from dreamer4.files import read_json, replacing, write_json
from dreamer4.types import Episode, EpisodePart

ROWS = ("frames_THWC", "act_out_TA", "act_known_T", "reward_T")
BATCH_BYTES = 32 << 20  # frames of a record batch: what a writer holds in memory


class ShardWriter:
    """Writes one shard, number `index`, of a dataset: a file and, when it is whole, its record next to it.

    Use it in a `with` block, or call `close`; after an error inside the block nothing is left of the shard. Shards of
    one dataset may be written by any number of processes, and again: the same episodes give the same file.

    Args:
        first_episode: number of the shard's first episode in the dataset.
    """

    def __init__(
        self,
        folder: Path,
        env: str,
        frame_shape: Sequence[int],
        actions: ActionSpace,
        tasks: Sequence[str],
        index: int,
        first_episode: int,
    ):
        height, width, channels = frame_shape
        self.recording = Recording(env, (height, width, channels), actions, tuple(tasks))
        self.path = Path(folder) / shard_name(index)
        self.first_episode = first_episode
        self.returns: list[float] = []
        self.successes = self.frames = 0
        self._waiting: list[Episode] = []
        self._waiting_frames = 0
        self._sources: dict[str, int] = {}
        with ExitStack() as opening:
            temporary = opening.enter_context(replacing(self.path))
            _remove_remains(self.path)
            sink = opening.enter_context(pa.OSFile(str(temporary), "wb"))
            # Later batches may add names to the dictionary of sources.
            options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
            schema = self.recording.arrow_schema()
            self._file = opening.enter_context(pa.ipc.new_file(sink, schema, options=options))
            self._resources = opening.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._resources.__exit__(kind, error, trace)

    @property
    def episodes(self) -> int:
        return len(self.returns)

    def add(self, episode: Episode) -> None:
        """Raises `DataError` if the episode doesn't fit the dataset or breaks the timing contract; it isn't added."""
        check_episode(episode, self.recording, self.first_episode + self.episodes)
        self.returns.append(episode.episode_return)
        self.successes += bool(episode.success)
        self.frames += episode.length
        self._waiting.append(episode)
        self._waiting_frames += episode.length
        if self._waiting_frames * self.recording.frame_bytes >= BATCH_BYTES:
            self._write_waiting()

    def add_parts(self, parts: Iterable[EpisodePart], task: int = 0, source: str = "") -> int:
        """Adds one episode that comes in parts; returns its number of frames.

        If the iterator raises, or a part doesn't fit, nothing of the episode is kept and the writer can go on.

        Raises:
            DataError: a part doesn't fit the dataset or breaks the timing contract, or the last one has no `end`.
        """
        episode = joined(parts, task, source)
        self.add(episode)
        return episode.length

    def close(self) -> Shard:
        """Gives the shard its name, then writes its record.

        Raises:
            DataError: it has no episode.
            RunError: the disk is full or can't be written.
        """
        with self._resources:
            if not self.returns:
                raise DataError(f"'{self.path}' would hold no episode; add one")
            self._write_waiting()
        returns = np.array(self.returns)
        shard = Shard(
            file=self.path.name,
            first_episode=self.first_episode,
            episodes=self.episodes,
            frames=self.frames,
            bytes=self.path.stat().st_size,
            crc32=crc32_of(self.path),
            successes=self.successes,
            return_sum=float(returns.sum()),
            return_square_sum=float((returns**2).sum()),
        )
        write_json(record_path(self.path), {**asdict(shard), "recording": self.recording.to_json()})
        return shard

    def _write_waiting(self) -> None:
        if not self._waiting:
            return
        first = self.first_episode + self.episodes - len(self._waiting)
        batch = record_batch(self._waiting, first, self.recording, self._sources)
        try:
            self._file.write_batch(batch)
        except OSError as error:
            raise RunError(f"can't write '{self.path}': {error.strerror or error}") from error
        self._waiting, self._waiting_frames = [], 0


class DatasetWriter:
    """Writes a dataset, or adds episodes to the one in the folder; they exist for readers after `close`.

    Use it in a `with` block, or call `close`; after an error inside the block the folder's dataset is what it was.

    Args:
        tasks: names of the tasks; an episode has the index of its own.
        shard_frames: a shard is finished when it has this many frames or more; episodes are not divided.

    Raises:
        DataError: the folder holds a dataset of another environment, frame size, action space or tasks.
    """

    def __init__(
        self,
        folder: Path,
        env: str,
        frame_shape: Sequence[int],
        actions: ActionSpace,
        tasks: Sequence[str],
        shard_frames: int = 16_384,
    ):
        height, width, channels = frame_shape
        self.folder = Path(folder)
        self.recording = Recording(env, (height, width, channels), actions, tuple(tasks))
        self.shard_frames = shard_frames
        self.shards: list[Shard] = []
        self._current: ShardWriter | None = None
        if (self.folder / MANIFEST).exists():
            there = Manifest.read(self.folder)
            if difference := there.recording.difference(self.recording):
                raise DataError(f"can't add to the dataset in '{folder}': its {difference}")
            self.shards = list(there.shards)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._current is not None:
            self._current.__exit__(kind, error, trace)

    def add(self, episode: Episode) -> None:
        """Raises `DataError` if the episode doesn't fit the dataset or breaks the timing contract; it isn't added."""
        if self._current is None:
            record = self.recording
            first = sum(shard.episodes for shard in self.shards)
            check_episode(episode, record, first)
            self._current = ShardWriter(
                self.folder, record.env, record.frame, record.actions, record.tasks, len(self.shards), first
            )
        self._current.add(episode)
        if self._current.frames >= self.shard_frames:
            self._finish_shard()

    def add_parts(self, parts: Iterable[EpisodePart], task: int = 0, source: str = "") -> int:
        """As `ShardWriter.add_parts`."""
        episode = joined(parts, task, source)
        self.add(episode)
        return episode.length

    def close(self) -> Manifest:
        """Finishes the last shard and writes the manifest.

        Raises:
            DataError: there is no episode.
        """
        if self._current is not None:
            self._finish_shard()
        if not self.shards:
            raise DataError(f"the dataset in '{self.folder}' would hold no episode; add one before closing")
        return _write_manifest(self.folder, self.recording, self.shards)

    def _finish_shard(self) -> None:
        assert self._current is not None
        current, self._current = self._current, None
        self.shards.append(current.close())


def joined(parts: Iterable[EpisodePart], task: int, source: str) -> Episode:
    whole = list(parts)
    if not whole or whole[-1].end is None:
        raise DataError("an episode stopped without a last part: give its last part an end")
    return Episode(
        *(np.concatenate([getattr(p, name) for p in whole]) for name in ROWS),
        terminal=whole[-1].end.terminal,
        success=whole[-1].end.success,
        task=task,
        source=source,
    )


def finished_shard(folder: Path, index: int) -> Shard | None:
    """The record of a shard that is whole, or None: what a restarted collector need not collect again."""
    path = Path(folder) / shard_name(index)
    if not record_path(path).is_file() or not path.is_file():
        return None
    shard = _read_record(path)[0]
    return shard if path.stat().st_size == shard.bytes else None


def merge_shards(folder: Path, count: int) -> Manifest:
    """Makes a dataset of shards 0 to `count - 1`, written by `ShardWriter`; idempotent.

    Raises:
        DataError: a shard is missing, they differ in environment, frames, actions or tasks, or their episode numbers
            don't continue each other.
    """
    paths = [Path(folder) / shard_name(index) for index in range(count)]
    missing = [path.name for index, path in enumerate(paths) if finished_shard(folder, index) is None]
    if missing or not paths:
        raise DataError(f"can't make a dataset of {count} shards in '{folder}': not finished: {', '.join(missing)}")
    records = [_read_record(path) for path in paths]
    recording, episodes = records[0][1], 0
    for shard, other in records:
        if difference := other.difference(recording):
            raise DataError(f"'{shard.file}' doesn't fit '{records[0][0].file}' in '{folder}': its {difference}")
        if shard.first_episode != episodes:
            raise DataError(f"'{shard.file}' in '{folder}' begins with episode {shard.first_episode}, not {episodes}")
        episodes += shard.episodes
    return _write_manifest(Path(folder), recording, [shard for shard, _ in records])


def record_path(shard_path: Path) -> Path:
    return shard_path.with_suffix(".json")


def _remove_remains(shard_path: Path) -> None:
    """The record of a shard that is about to be written again, and what killed writers left of it."""
    record_path(shard_path).unlink(missing_ok=True)
    for temporary in shard_path.parent.glob(f".{shard_path.name}.*.tmp"):
        temporary.unlink(missing_ok=True)


def _read_record(shard_path: Path) -> tuple[Shard, Recording]:
    record = dict(read_json(record_path(shard_path)))
    recording = Recording.from_json(record.pop("recording"))
    return Shard(**record), recording


def _write_manifest(folder: Path, recording: Recording, shards: Sequence[Shard]) -> Manifest:
    manifest = Manifest(recording, tuple(shards))
    write_json(folder / MANIFEST, manifest.to_json())
    return manifest
