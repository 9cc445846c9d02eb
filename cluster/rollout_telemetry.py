"""What stage 4 tells of its throughput: `telemetry.jsonl` in the run, and Ray's metrics for Prometheus."""

import json
import math
import time
from pathlib import Path
from typing import Any

from ray.util.metrics import Gauge

from cluster.run import Run
from dreamer4.files import append_line, read_events

FILE = "telemetry.jsonl"

# Keys of a row, and what they are. Each is a gauge `ray_dreamer_<key>` on the metrics port of the coordinator's node.
GAUGES = {
    "step": "updates that are applied",
    "frames_per_s": "imagined frames per second, all workers",
    "frames_per_s_per_worker": "imagined frames per second of a worker",
    "imagined_frames": "imagined frames since the coordinator started",
    "rollouts_per_s": "rollouts per second",
    "updates_per_s": "updates of the learner per second",
    "learner_starves": "share of the time in which the learner had nothing to do",
    "workers_idle": "share of the workers' time in which they were not allowed to imagine",
    "rollout_delay_s": "mean seconds from the request of a rollout to its arrival",
    "staleness": "mean updates between the weights of a rollout and its use",
    "store_bytes": "bytes of rollouts that crossed the object store since the coordinator started",
    "workers_wanted": "workers that the controller wants",
    "workers_pending": "workers that wait for a node, or start",
    "workers_ready": "workers that imagine",
    "workers_draining": "workers that finish their rollouts and go",
    "workers_lost": "workers that were lost since the coordinator started",
    "rollouts_in_flight": "rollouts that workers were asked for",
    "rollouts_waiting": "rollouts that wait for a worker",
    "rollouts_accepted": "rollouts that wait for the learner",
    "oldest_request_s": "age in seconds of the oldest rollout in flight",
    "weights_version": "newest version of the policy's weights",
    "nodes": "living nodes of the cluster, the head included",
}


class TelemetryWriter:
    """Appends rows of `GAUGES` to a run's telemetry, and sets the gauges."""

    def __init__(self, run: Run, stage: str):
        self.path, self.stage = run.path / FILE, stage
        tags = {"run": run.path.name, "stage": stage}
        self.gauges = {key: Gauge(f"dreamer_{key}", text, tag_keys=tuple(tags)) for key, text in GAUGES.items()}
        for gauge in self.gauges.values():
            gauge.set_default_tags(tags)

    def write(self, row: dict[str, Any]) -> None:
        """Raises `RunError` if the file can't be written."""
        append_line(self.path, json.dumps({"stage": self.stage, "time": round(time.time(), 3), **row}))
        for key, gauge in self.gauges.items():
            if math.isfinite(row[key]):
                gauge.set(row[key])


def read_telemetry(run: Path, stage: str | None = None) -> list[dict[str, Any]]:
    """Rows in order, of one stage or of all."""
    return read_events(Path(run) / FILE, stage)
