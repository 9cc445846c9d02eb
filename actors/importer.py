"""Imports groups of sources into shards; what was done is not done again, and the same sources give the same file."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from dreamer4.data.codecs import Codec
from dreamer4.data.importers.importer import Options
from dreamer4.data.importers.registry import importer
from dreamer4.data.importers.sums import SourceSums
from dreamer4.data.schema import MANIFEST, Manifest, Recording, shard_name
from dreamer4.data.shard_writer import ShardWriter, record_path
from dreamer4.data.writer import finished_shard
from dreamer4.errors import DataError
from dreamer4.files import read_json, write_json

REPORTS = "import"  # folder of a dataset with what was said of every shard
NUMBERS = 1 << 20  # of episodes that a shard may have: how many it has is not known before


@dataclass(frozen=True)
class Job:
    """What is imported, how, and whereto."""

    family: str
    source: Path
    options: Options
    folder: Path
    codec: str = "auto"
    keep_going: bool = False  # a source with a fault is left out and reported


@dataclass(frozen=True)
class Report:
    """What became of one shard's sources."""

    sources: tuple[str, ...]
    episodes: int
    frames: int
    quarantined: tuple[dict[str, str], ...]  # {"source", "error"}

    @classmethod
    def read(cls, path: Path) -> Self:
        record = read_json(path)
        return cls(tuple(record["sources"]), record["episodes"], record["frames"], tuple(record["quarantined"]))


class SourceImporter:
    """Imports sources of one place with the same options."""

    def __init__(self, job: Job):
        self.job = job
        self.importer = importer(job.family, job.source, job.options)
        self.sums = SourceSums(job.source)
        self.recording = with_codec(self.importer.recording, job.codec)

    def make(self, index: int, sources: tuple[str, ...]) -> tuple[Report, float]:
        """Imports shard number `index`, unless it is there; returns what became of it and the CPU seconds.

        Raises:
            DataError: a source has a fault, and the job doesn't keep going.
            RunError: the disk is full or can't be written.
        """
        before = time.process_time()
        report = finished_report(self.job.folder, index, sources)
        if report is None:
            report = self._import(index, sources)
            write_json(report_path(self.job.folder, index), asdict(report))
        return report, time.process_time() - before

    def _import(self, index: int, sources: tuple[str, ...]) -> Report:
        """Writes the shard without the sources that have a fault: from the start, once more for each that is found."""
        faults: dict[str, str] = {}
        while len(faults) < len(sources):
            good = [source for source in sources if source not in faults]
            source = good[0]
            record = self.recording
            try:
                shape = (record.env, record.frame, record.actions, record.tasks)
                with ShardWriter(self.job.folder, *shape, index, index * NUMBERS, record.codec) as writer:
                    for source in good:
                        self.sums.verify(self.importer.files(source))
                        for episode in self.importer.episodes(source):
                            writer.add_parts(episode.parts, episode.task, episode.source)
            except DataError as error:
                if not self.job.keep_going:
                    raise DataError(f"source '{source}': {error}") from error
                faults[source] = str(error)
                continue
            return Report(sources, writer.episodes, writer.frames, _quarantined(faults))
        record_path(self.job.folder / shard_name(index)).unlink(missing_ok=True)
        return Report(sources, 0, 0, _quarantined(faults))


def with_codec(recording: Recording, codec: str) -> Recording:
    """Raises `DataError` if there is no such codec, or it can't hold such frames."""
    chosen = Codec.choose(codec, recording.frame)
    return Recording(recording.env, recording.frame, recording.actions, recording.tasks, chosen)


def report_path(folder: Path, index: int) -> Path:
    return folder / REPORTS / f"shard-{index:05d}.json"


def finished_report(folder: Path, index: int, sources: tuple[str, ...]) -> Report | None:
    """What became of a shard that is complete, or None."""
    path = report_path(folder, index)
    if not path.is_file():
        return None
    report = Report.read(path)
    whole = report.episodes == 0 or finished_shard(folder, index) is not None
    return report if whole and report.sources == sources else None


def gather(folder: Path, reports: list[Report]) -> Manifest:
    """Makes a dataset of the shards that hold an episode, in order; idempotent.

    Raises:
        DataError: there is none, or one of them is missing.
    """
    shards, recording, episodes = [], None, 0
    for index, report in enumerate(reports):
        if report.episodes == 0:
            continue
        shard = finished_shard(folder, index)
        if shard is None:
            raise DataError(f"'{folder / shard_name(index)}' is missing: import again")
        recording = recording or Recording.from_json(read_json(record_path(folder / shard_name(index)))["recording"])
        # As it was written, nobody knew how many episodes come before it.
        shards.append(replace(shard, first_episode=episodes))
        episodes += shard.episodes
    if recording is None:
        faults = [fault for report in reports for fault in report.quarantined]
        raise DataError(f"nothing was imported: all {len(faults)} sources have a fault, first: {faults[0]['error']}")
    manifest = Manifest(recording, tuple(shards))
    write_json(folder / MANIFEST, manifest.to_json())
    return manifest


def _quarantined(faults: dict[str, str]) -> tuple[dict[str, str], ...]:
    return tuple({"source": source, "error": error} for source, error in sorted(faults.items()))
