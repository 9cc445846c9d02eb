"""Writes episodes to disk. A killed writer leaves no half dataset: files are renamed when whole, the manifest is last.

One process writes with `DatasetWriter`. Several write side by side with `ShardWriter`, each its own numbered shards,
and `merge_shards` makes a dataset of them. Episodes come whole, or in parts where they are long; see `add_parts`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from dreamer4.actions import ActionSpace
from dreamer4.data.codecs import Codec
from dreamer4.data.schema import MANIFEST, Manifest, Recording, Shard, shard_name
from dreamer4.data.shard_writer import RAW, ShardWriter, as_parts, record_path
from dreamer4.data.storage import LocalFolder, local_path
from dreamer4.errors import DataError
from dreamer4.files import read_json, write_json
from dreamer4.types import Episode, EpisodePart


class DatasetWriter:
    """Writes a dataset, or adds episodes to the one in the folder; they exist for readers after `close`.

    Use it in a `with` block, or call `close`; after an error inside the block the folder's dataset is what it was.

    Args:
        tasks: names of the tasks; an episode has the index of its own.
        shard_frames: a shard is finished when it has this many frames or more; episodes are not divided.
        shard_bytes: or when its frames take this many bytes on the disk.

    Raises:
        DataError: the folder holds a dataset of another environment, frame size, action space, tasks or codec.
    """

    def __init__(
        self,
        folder: Path,
        env: str,
        frame_shape: Sequence[int],
        actions: ActionSpace,
        tasks: Sequence[str],
        shard_frames: int = 16_384,
        codec: Codec = RAW,
        shard_bytes: int = 1 << 30,
    ):
        height, width, channels = frame_shape
        self.folder = local_path(folder)
        self.recording = Recording(env, (height, width, channels), actions, tuple(tasks), codec)
        self.shard_frames, self.shard_bytes = shard_frames, shard_bytes
        self.shards: list[Shard] = []
        self._current: ShardWriter | None = None
        if (self.folder / MANIFEST).exists():
            there = Manifest.read(LocalFolder(self.folder))
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
        self.add_parts(as_parts(episode), episode.task, episode.source)

    def add_parts(self, parts: Iterable[EpisodePart], task: int = 0, source: str = "") -> int:
        """As `ShardWriter.add_parts`."""
        if self._current is None:
            record = self.recording
            self._current = ShardWriter(
                self.folder,
                record.env,
                record.frame,
                record.actions,
                record.tasks,
                1 + max((int(Path(shard.file).stem.rpartition("-")[2]) for shard in self.shards), default=-1),
                sum(shard.episodes for shard in self.shards),
                record.codec,
            )
        length = self._current.add_parts(parts, task, source)
        if self._current.frames >= self.shard_frames or self._current.bytes >= self.shard_bytes:
            self._finish_shard()
        return length

    def close(self) -> Manifest:
        """Finishes the last shard and writes the manifest.

        Raises:
            DataError: there is no episode.
        """
        if self._current is not None and not self._current.episodes:  # its only episode was refused
            error = DataError("no episode")
            self._current.__exit__(DataError, error, None)
            self._current = None
        if self._current is not None:
            self._finish_shard()
        if not self.shards:
            raise DataError(f"the dataset in '{self.folder}' would hold no episode; add one before closing")
        return _write_manifest(self.folder, self.recording, self.shards)

    def _finish_shard(self) -> None:
        assert self._current is not None
        current, self._current = self._current, None
        self.shards.append(current.close())


def finished_shard(folder: Path, index: int) -> Shard | None:
    """The record of a shard that is whole, or None: what a restarted collector need not collect again."""
    path = Path(folder) / shard_name(index)
    if not record_path(path).is_file():
        return None
    shard, there = _read_record(path)[0], LocalFolder(Path(folder))
    whole = there.size(shard.file) == shard.bytes and there.size(shard.index) == shard.index_bytes
    return shard if whole else None


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


def _read_record(shard_path: Path) -> tuple[Shard, Recording]:
    record = dict(read_json(record_path(shard_path)))
    recording = Recording.from_json(record.pop("recording"))
    return Shard(**record), recording


def _write_manifest(folder: Path, recording: Recording, shards: Sequence[Shard]) -> Manifest:
    manifest = Manifest(recording, tuple(shards))
    write_json(folder / MANIFEST, manifest.to_json())
    return manifest
