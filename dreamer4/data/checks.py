"""What can be wrong with a shard of a dataset, found without trusting any of it, by file, row and episode."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dreamer4.data.arrow_columns import column_faults
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.fault import Fault
from dreamer4.data.schema import Manifest, Shard, crc32_of
from dreamer4.data.storage import Folder, RangeFile
from dreamer4.errors import DataError

LONG_ENOUGH = 8  # frames of an episode whose picture should change at some time
SAME = 1.0  # mean difference of two frames of lossy video that may be the same
PORTION_BYTES = 64 << 20  # of frames that are in memory at a time


@dataclass(frozen=True)
class Checked:
    """What was found out about a shard. Episodes are counted from the shard's first."""

    faults: list[Fault]
    good: tuple[int, ...]  # episodes that can be read and have no fault of their own
    digests: dict[int, bytes]  # of what the good ones hold
    unchecked: int  # episodes that no check could reach


class Claimed(Folder):
    """A folder whose files have the sizes that a manifest says: what lies before a cut can be read, the rest can't."""

    def __init__(self, folder: Folder, shards: tuple[Shard, ...]):
        self._folder, self.name = folder, folder.name
        self._sizes = {shard.file: shard.bytes for shard in shards}

    def size(self, file: str) -> int | None:
        return self._sizes.get(file, self._folder.size(file))

    def open(self, file: str) -> RangeFile:
        return self._folder.open(file)


def some_shards(folder: Folder, manifest: Manifest, numbers: Sequence[int], threads: int = 0) -> EpisodeDataset:
    """Shards as a dataset of their own, also where they were cut or have another checksum. Raises `DataError`."""
    shards = tuple(manifest.shards[number] for number in numbers)
    return EpisodeDataset(Claimed(folder, shards), Manifest(manifest.recording, shards), threads=threads)


def check_shard(folder: Folder, manifest: Manifest, number: int, threads: int = 0) -> Checked:
    """Reads all of a shard.

    Args:
        threads: that decode frames side by side.
    """
    shard = manifest.shards[number]
    before = sum(one.episodes for one in manifest.shards[:number])
    faults, whole = _file_faults(folder, shard)
    try:
        data = some_shards(folder, manifest, [number], threads)
    except DataError as error:
        text = f"{error}; none of its {shard.episodes} episodes can be read"
        return Checked([*faults, Fault("index", shard.index, text)], (), {}, shard.episodes)
    faults += _sum_faults(shard, data)
    if whole:
        faults += column_faults(folder, shard, manifest.recording, data, before)
    good, digests = list[int](), dict[int, bytes]()
    for episode in range(data.episode_count):
        digest = hashlib.blake2b(digest_size=16)
        try:
            found = list(_row_faults(data, episode))
            found += _frame_faults(data, episode, digest)
        except DataError as error:
            found = [("frames", str(error), None)]
        start = int(data.starts_E[episode])
        faults += [
            Fault(kind, shard.file, text, before + episode, None if row is None else start + row)
            for kind, text, row in found
        ]
        if not found:
            good.append(episode)
            digests[episode] = digest.digest()
    named = {fault.episode for fault in faults}
    good = [episode for episode in good if before + episode not in named]
    return Checked(faults, tuple(good), {episode: digests[episode] for episode in good}, 0)


def _file_faults(folder: Folder, shard: Shard) -> tuple[list[Fault], bool]:
    """Faults of the two files as such, and whether the shard's bytes are what they were when it was written."""
    faults = []
    for file, size, checksum in ((shard.file, shard.bytes, shard.crc32), (shard.index, shard.index_bytes, None)):
        try:
            found = folder.size(file)
            if found is None:
                faults.append(Fault("missing", file, "the manifest names it, and it isn't there"))
            elif found != size:
                faults.append(Fault("truncated", file, f"has {found} bytes, the manifest says {size}"))
            elif checksum is not None and (sum_ := crc32_of(folder, file, size)) != checksum:
                faults.append(Fault("checksum", file, f"has checksum {sum_:08x}, the manifest says {checksum:08x}"))
        except DataError as error:
            faults.append(Fault("missing", file, str(error)))
    return faults, not any(fault.file == shard.file for fault in faults)


def _sum_faults(shard: Shard, data: EpisodeDataset) -> list[Fault]:
    """Sums of the manifest that its index contradicts."""
    sums = {
        "successes": (shard.successes, int(data.success_E.sum())),
        "known actions": (shard.known, int(data.known_E.sum())),
        "sum of returns": (shard.return_sum, float(data.returns_E.sum())),
    }
    return [
        Fault("statistics", shard.index, f"{name}: the manifest says {said!r}, the index {found!r}")
        for name, (said, found) in sums.items()
        if not _close(said, found)
    ]


def _close(said: object, found: float) -> bool:
    return isinstance(said, int | float) and bool(np.isclose(said, found, rtol=1e-6, atol=1e-6))


Found = tuple[str, str, int | None]  # kind, text, row of the episode


def _row_faults(data: EpisodeDataset, episode: int) -> Iterator[Found]:
    """Actions, rewards and events of one episode against the space, the timing contract and the index."""
    start, length = int(data.starts_E[episode]), int(data.lengths_E[episode])
    rows = data.rows(np.arange(start, start + length))
    known, acts, reward = rows["act_known"], rows["act_out"], rows["reward"]
    if known[-1]:
        yield "misaligned", f"knows an action at its last frame: {length} frames carry {length - 1} actions", length - 1
    if known.sum() != data.known_E[episode]:
        text = f"knows {known.sum()} actions, its index says {data.known_E[episode]}"
        yield "misaligned", text, None
    for row in np.flatnonzero(~np.isfinite(acts).all(axis=1))[:1]:
        yield "not finite", f"an action is {acts[row][~np.isfinite(acts[row])][0]}", int(row)
    space, places = data.manifest.actions, np.flatnonzero(known & np.isfinite(acts).all(axis=1))
    try:
        space.check(acts[places])
    except DataError as error:
        yield "action", str(error), next(int(row) for row in places if not _allowed(data, acts[row]))
    for row in np.flatnonzero(~np.isfinite(reward))[:1]:
        yield "not finite", f"the reward is {reward[row]}", int(row)
    if np.isfinite(reward).all():
        if reward[0] != 0:
            text = f"has reward {reward[0]:g} at its first frame; rewards are on arrival: shift them by one frame"
            yield "misaligned", text, 0
        total, said = float(reward[1:].sum(dtype=np.float64)), float(data.returns_E[episode])
        if not _close(said, total):
            yield "misaligned", f"its rewards add up to {total:g}, its index says {said:g}", None
    events, tasks = rows["events"], len(data.manifest.tasks)
    for row in np.flatnonzero((events < 0) | (events >> tasks > 0))[:1]:
        yield "event", f"has events {int(events[row]):b} of {tasks} tasks", int(row)
        return
    mine = (data.event_frame_V >= start) & (data.event_frame_V < start + length)
    noted = np.zeros(length, np.int64)
    np.bitwise_or.at(noted, data.event_frame_V[mine] - start, 1 << data.event_task_V[mine].astype(np.int64))
    for row in np.flatnonzero(noted != events)[:1]:
        yield "event", f"has events {int(events[row]):b}, its index says {int(noted[row]):b}", int(row)


def _allowed(data: EpisodeDataset, act_A: np.ndarray) -> bool:
    try:
        data.manifest.actions.check(act_A[None])
    except DataError:
        return False
    return True


def _frame_faults(data: EpisodeDataset, episode: int, digest: "hashlib.blake2b") -> list[Found]:
    """Decodes all frames, some at a time; adds them and the rows to the digest."""
    start, length = int(data.starts_E[episode]), int(data.lengths_E[episode])
    codec = data.manifest.recording.codec
    portion = max(1, PORTION_BYTES // (codec.chunk * data.manifest.recording.frame_bytes)) * codec.chunk
    first, changes = None, False
    for begin in range(0, length, portion):
        video = data.video(start + begin, start + min(begin + portion, length))
        digest.update(np.ascontiguousarray(video).data)
        first = video[0] if first is None else first
        if not changes:
            changes = any(_differ(frame, first, codec.lossless) for frame in video)
    rows = data.rows(np.arange(start, start + length))
    for name in ("act_out", "act_known", "reward"):
        digest.update(np.ascontiguousarray(rows[name]).tobytes())
    dead = length >= LONG_ENOUGH and not changes
    return [("dead", f"its {length} frames all show the same", 0)] if dead else []


def _differ(one: np.ndarray, other: np.ndarray, exact: bool) -> bool:
    if exact:
        return not np.array_equal(one, other)
    return float(np.abs(one.astype(np.int16) - other).mean()) > SAME
