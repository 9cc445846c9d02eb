"""`dreamer4 data import`: recordings in somebody's format become a dataset, many sources side by side.

The plan (which sources make which shard) is written first, so that an interrupted import goes on with the same plan and
ends in the same bytes; sources that are new at a later start become further shards.

```
DATASET/import.json            the plan and the options     DATASET/import/shard-N.json    what became of its sources
DATASET/quarantine.jsonl       sources that were left out   DATASET/manifest.json          written last
```
"""

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors.importer import Job, Report, SourceImporter, finished_report, gather, report_path, with_codec
from cluster.data.dealing import deal
from cluster.placement import worker
from cluster.presets import smoke
from cluster.runtime import ray_session
from cluster.settings import override
from cluster.telemetry import Progress
from dreamer4.data.importers.importer import Importer
from dreamer4.data.importers.registry import importer
from dreamer4.data.schema import MANIFEST
from dreamer4.errors import DataError, RunError
from dreamer4.files import ensure_writable, read_json, write_atomic, write_json

PLAN = "import.json"
QUARANTINE = "quarantine.jsonl"

Plan = list[tuple[str, ...]]  # sources of every shard


def import_recordings(job: Job, workers: int, retry: bool = False) -> dict[str, Any]:
    """Imports everything at the job's source that its dataset doesn't hold yet.

    Args:
        workers: processes; 1 imports in this one and starts no Ray.
        retry: sources that were left out before are tried again.

    Returns:
        Counts: sources, episodes, frames, quarantined, and of this start `new_frames` and `cpu_seconds`.

    Raises:
        DataError: there is nothing to import, a source has a fault and the job doesn't keep going, or the dataset was
            made with other options.
        RunError: another process imports into the folder, it can't be written, or processes are lost again and again.
    """
    reader = importer(job.family, job.source, job.options)
    ensure_writable(job.folder)
    with _locked(job.folder):
        plan = planned(job, reader)
        reports = [finished_report(job.folder, index, sources) for index, sources in enumerate(plan)]
        if retry:
            reports = [None if report and report.quarantined else report for report in reports]
            for index, report in enumerate(reports):
                if report is None:
                    report_path(job.folder, index).unlink(missing_ok=True)
        waiting = [index for index, report in enumerate(reports) if report is None]
        total = sum(map(len, plan))
        progress = Progress("import", total, total - sum(len(plan[index]) for index in waiting))
        frames, cpu, began = 0, 0.0, time.monotonic()
        for index, (report, seconds) in _made(job, plan, waiting, min(workers, len(waiting))):
            reports[index] = report
            frames, cpu = frames + report.frames, cpu + seconds
            rate = frames / max(time.monotonic() - began, 1e-9)
            progress.update(sum(len(one.sources) for one in reports if one), {"frames": frames, "frames/s": rate})
        progress.close()
        done = [report for report in reports if report is not None]
        faults = [fault for report in done for fault in report.quarantined]
        lines = "".join(json.dumps(fault) + "\n" for fault in faults)
        if lines or (job.folder / QUARANTINE).exists():
            write_atomic(job.folder / QUARANTINE, lines.encode())
        manifest = gather(job.folder, done)
        counts = {"sources": total, "episodes": manifest.episodes, "frames": manifest.frames}
        return {**counts, "quarantined": len(faults), "new_frames": frames, "cpu_seconds": cpu}


def planned(job: Job, reader: Importer) -> Plan:
    """The plan of the dataset, with new sources added to it; written before anything is imported.

    Raises:
        DataError: the folder holds a dataset that was not imported, or with other options.
    """
    path, description = job.folder / PLAN, _description(job, reader)
    plan: Plan = []
    if path.exists():
        there = read_json(path)
        if there["import"] != description:
            keys = [key for key in description if there["import"].get(key) != description[key]]
            raise DataError(
                f"'{job.folder}' was imported with other options ({', '.join(keys)}; see '{path}'): give another "
                "--out, or the same options"
            )
        plan = [tuple(sources) for sources in there["shards"]]
    elif (job.folder / MANIFEST).exists():
        raise DataError(f"'{job.folder}' holds a dataset that was not imported: give another --out")
    known = {source for sources in plan for source in sources}
    new = [source for source in reader.sources() if source not in known]
    plan += [tuple(new[i : i + reader.per_shard]) for i in range(0, len(new), reader.per_shard)]
    if new:
        write_json(path, {"import": description, "shards": plan})
    return plan


def _description(job: Job, reader: Importer) -> dict[str, Any]:
    """What two starts have to agree on, as JSON; where the sources lie, and how long is waited, may change."""
    options = {key: value for key, value in asdict(job.options).items() if key not in ("like", "patience")}
    options |= {"fps": str(job.options.fps), "exclude": sorted(job.options.exclude)}
    described = {"family": job.family, **with_codec(reader.recording, job.codec).to_json(), **options}
    return json.loads(json.dumps(described))


def _made(job: Job, plan: Plan, waiting: list[int], workers: int) -> Iterator[tuple[int, tuple[Report, float]]]:
    """Shards as they are finished."""
    if workers <= 1:
        here = SourceImporter(job) if waiting else None
        for index in waiting:
            assert here is not None
            yield index, here.make(index, plan[index])
        return
    with ray_session(override(smoke(), [f"resources.collectors={workers}"])):

        def build() -> Any:
            return worker(SourceImporter, name="importer").remote(job)

        yield from deal("import", [build() for _ in range(workers)], build, waiting, lambda index: (plan[index],))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One import per folder at a time; the kernel gives the lock back whatever becomes of this process."""
    with open(folder / ".import.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another process imports into '{folder}': wait for it, or stop it first") from None
        yield
