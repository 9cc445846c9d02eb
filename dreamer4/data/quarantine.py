"""Takes bad episodes out of a dataset. Good ones are copied as they are coded, so nothing is lost by it.

Shards that hold no fault are not touched. The others are written again under new names; the dataset changes at the
moment in which the manifest is replaced. All former files stay in `quarantine-N` in the folder, a dataset of its own.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from dreamer4.data.checks import some_shards
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.fault import Fault
from dreamer4.data.index import EpisodeRow
from dreamer4.data.schema import MANIFEST, Manifest, Shard, index_name, shard_name
from dreamer4.data.shard_writer import ShardWriter, record_path
from dreamer4.data.spool import MEASURED_EVERY
from dreamer4.data.storage import LocalFolder
from dreamer4.data.table import Chunk, Rows
from dreamer4.data.writer import finished_shard
from dreamer4.errors import DataError
from dreamer4.files import write_json

FAULTS = "faults.json"
IMPORT = ("import.json", "import")  # another import would bring bad episodes back, so it shall begin anew


def quarantine(folder: Path, manifest: Manifest, good: Sequence[Sequence[int]], faults: Sequence[Fault]) -> Path:
    """Leaves only good episodes in a dataset on a disk; returns where the former one is.

    Args:
        good: of every shard the episodes to keep, counted from the shard's first.

    Raises:
        DataError: no episode is good.
        RunError: the folder can't be written.
    """
    if not any(map(len, good)):
        raise DataError(f"no episode of '{folder}' is good: nothing is changed; import or record it again")
    aside, shards, replaced = _aside(folder), list[Shard](), list[Shard]()
    faulty = {fault.file for fault in faults}
    free = 1 + max(_number(path) for path in [*folder.glob("shard-*.*"), folder / shard_name(0)])
    for number, (shard, kept) in enumerate(zip(manifest.shards, good, strict=True)):
        whole = len(kept) == shard.episodes and not faulty & {shard.file, shard.index}
        if not whole:
            replaced.append(shard)
        if kept:
            before = sum(one.episodes for one in shards)
            if not whole:
                shard = _copied(some_shards(LocalFolder(folder), manifest, [number]), folder, kept, free, shard)
                free += 1
            shards.append(replace(shard, first_episode=before))
    keep_aside(folder, aside)
    write_json(aside / FAULTS, [asdict(fault) for fault in faults])
    write_json(folder / MANIFEST, Manifest(manifest.recording, tuple(shards)).to_json())
    for shard in replaced:
        for path in (folder / shard.file, folder / shard.index, record_path(folder / shard.file)):
            path.unlink(missing_ok=True)
    for name in IMPORT:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return aside


def _number(path: Path) -> int:
    digits = path.stem.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else 0


def _aside(folder: Path) -> Path:
    number = 0
    while (folder / f"quarantine-{number}").exists():
        number += 1
    return folder / f"quarantine-{number}"


def keep_aside(folder: Path, aside: Path) -> None:
    """All files of the dataset once more, without their bytes where the disk knows hard links."""
    names = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    plan = [path for path in (folder / "import").glob("*") if path.is_file()]
    for path in [*names, *plan]:
        target = aside / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:
            shutil.copy2(path, target)


def _copied(data: EpisodeDataset, folder: Path, episodes: Sequence[int], index: int, shard: Shard) -> Shard:
    """Some episodes of a shard as a new shard, number `index`."""
    (folder / index_name(index)).unlink(missing_ok=True)
    record, error = data.manifest.recording, shard.error_sum / max(shard.error_chunks, 1)
    writer = ShardWriter(
        folder, record.env, record.frame, record.actions, record.tasks, index, shard.first_episode, record.codec
    )
    with writer:
        for number, episode in enumerate(episodes, start=shard.first_episode):
            chunks = -(-int(data.lengths_E[episode]) // record.codec.chunk)
            firsts = int(data.starts_E[episode]) + np.arange(chunks) * record.codec.chunk
            rows = _rows(data, episode)
            known = rows.act_out_TA[rows.act_known_T].astype(np.float64)
            writer.add_chunks(
                row_of(data, episode),
                _chunks(data, episode, number, rows),
                np.stack([known.sum(axis=0), np.square(known).sum(axis=0)]),
                sum((_pixels(data.video(int(first), int(first) + 1)[0]) for first in firsts), np.zeros(())),
                [] if record.codec.lossless else [error] * -(-chunks // MEASURED_EVERY),
            )
    written = finished_shard(folder, index)
    assert written is not None
    return written


def _pixels(frame_HWC: np.ndarray) -> np.ndarray:
    unit = frame_HWC.reshape(-1, frame_HWC.shape[-1]) / 255
    return np.stack([np.full(unit.shape[1], float(len(unit))), unit.sum(axis=0), np.square(unit).sum(axis=0)])


def _rows(data: EpisodeDataset, episode: int) -> Rows:
    start = int(data.starts_E[episode])
    rows = data.rows(np.arange(start, start + int(data.lengths_E[episode])))
    return Rows(rows["act_out"], rows["act_known"], rows["reward"], rows["events"])


def row_of(data: EpisodeDataset, episode: int) -> EpisodeRow:
    """What the index says of an episode."""
    start, length = int(data.starts_E[episode]), int(data.lengths_E[episode])
    mine = (data.event_frame_V >= start) & (data.event_frame_V < start + length)
    return EpisodeRow(
        length=length,
        task=int(data.task_E[episode]),
        success=bool(data.success_E[episode]),
        terminal=bool(data.terminal_E[episode]),
        truncated=bool(data.truncated_E[episode]),
        known=int(data.known_E[episode]),
        episode_return=float(data.returns_E[episode]),
        source=data.source(episode),
        event_frames=(data.event_frame_V[mine] - start).tolist(),
        event_tasks=data.event_task_V[mine].tolist(),
    )


def _chunks(data: EpisodeDataset, episode: int, number: int, rows: Rows) -> Iterator[Chunk]:
    """The chunks of an episode as they are in the file."""
    row, size = row_of(data, episode), data.manifest.recording.codec.chunk
    for first in range(0, row.length, size):
        blob, crc32 = data.frames.blob(episode, first // size)
        last = first + size >= row.length
        yield Chunk(
            rows=rows.between(first, first + size),
            blob=blob,
            crc32=crc32,
            episode=number,
            first=first == 0,
            terminal=last and row.terminal,
            truncated=last and row.truncated,
            task=row.task,
            success=row.success,
            source=row.source,
        )
