"""What stage 4 tells of its throughput: `telemetry.jsonl` in the run, and Ray's metrics for Prometheus."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.util.metrics import Gauge

from dreamer4.files import append_line, read_events

FILE = "telemetry.jsonl"
TAGS = ("run", "stage")


@dataclass(frozen=True)
class Metric:
    """A key of a row.

    Args:
        unit: as docs/metrics.md says it.
        counts: it only grows, from 0 at the coordinator's start, so its name in Prometheus ends in `_total`. For Ray
            it is a gauge all the same: Ray's counters can't be 0, and what begins at 1 has not increased.
        by: where a row has a number for each of several things, the label that tells them apart.
    """

    unit: str
    text: str
    counts: bool = False
    by: str | None = None


METRICS = {
    "step": Metric("updates", "updates of the policy that are applied"),
    "steps": Metric("updates", "updates after which the stage is done"),
    "since_update_s": Metric("seconds", "time since an update was applied, or since the coordinator started"),
    "updates_per_s": Metric("1/second", "updates of the learner"),
    "learner_metric": Metric("by name", "what the learner measured in its last update, see metrics.jsonl", by="name"),
    "frames_per_s": Metric("frames/second", "imagined frames, all workers"),
    "frames_per_s_per_worker": Metric("frames/second", "imagined frames of a worker, the mean over the ready ones"),
    "worker_frames_per_s": Metric("frames/second", "imagined frames of each worker", by="worker"),
    "imagined_frames": Metric("frames", "imagined frames", counts=True),
    "rollouts_per_s": Metric("1/second", "rollouts that arrived"),
    "learner_starves": Metric("share of time", "the learner had no update to do"),
    "workers_idle": Metric("share of time", "of the ready workers: they were not allowed to imagine further ahead"),
    "rollout_delay_s": Metric("seconds", "mean time from the request of a rollout to its arrival"),
    "oldest_request_s": Metric("seconds", "age of the oldest rollout in flight"),
    "rollouts_in_flight": Metric("rollouts", "rollouts that workers were asked for"),
    "rollouts_waiting": Metric("rollouts", "rollouts that wait for a worker"),
    "rollouts_accepted": Metric("rollouts", "rollouts that wait for the learner"),
    "staleness": Metric("updates", "mean lag between the weights of a rollout and its use"),
    "weights_version": Metric("version", "newest weights of the policy"),
    "weights_lag": Metric("versions", "newest weights less the oldest that a rollout in flight is imagined with"),
    "weights_lag_limit": Metric("versions", "what `weights_lag` may be, policy.max_staleness"),
    "workers_wanted": Metric("workers", "workers that the controller wants"),
    "workers_pending": Metric("workers", "workers that wait for a node, or start"),
    "workers_ready": Metric("workers", "workers that imagine"),
    "workers_draining": Metric("workers", "workers that finish their rollouts and go"),
    "workers_lost": Metric("workers", "workers that were lost", counts=True),
    "nodes": Metric("nodes", "living nodes of the cluster, the head included"),
    "store_bytes": Metric("bytes", "rollouts that crossed the object store", counts=True),
    "cost_per_million_frames": Metric("price", "nodes x resources.node_price for a million imagined frames"),
}


def exported(key: str) -> str:
    """The name of a metric in Prometheus."""
    return f"ray_dreamer_{key}{'_total' if METRICS[key].counts else ''}"


class TelemetryWriter:
    """Appends rows of `METRICS` to a run's telemetry, and tells Ray.

    Args:
        run: the run's directory.
        node_price: of a node, per hour, in any currency; 0: unknown.
    """

    def __init__(self, run: Path, stage: str, node_price: float = 0.0):
        self.path, self.stage, self.node_price = Path(run) / FILE, stage, node_price
        self.gauges = {key: self._gauge(key, Path(run).name) for key in METRICS}
        self.labels: dict[str, set[str]] = {key: set() for key, metric in METRICS.items() if metric.by}

    def _gauge(self, key: str, run: str) -> Gauge:
        metric = METRICS[key]
        keys = (*TAGS, *([metric.by] if metric.by else []))
        gauge = Gauge(exported(key).removeprefix("ray_"), metric.text, tag_keys=keys)
        gauge.set_default_tags({"run": run, "stage": self.stage})
        return gauge

    def write(self, row: Mapping[str, Any]) -> None:
        """Raises `RunError` if the file can't be written."""
        row = {**row, "cost_per_million_frames": self._cost(row["nodes"], row["frames_per_s"])}
        append_line(self.path, json.dumps({"stage": self.stage, "time": round(time.time(), 3), **row}))
        for key, metric in METRICS.items():
            if metric.by:
                self._tell_each(key, metric.by, row[key])
            elif row[key] is not None and math.isfinite(row[key]):
                self.gauges[key].set(row[key])

    def _cost(self, nodes: int, frames_per_s: float) -> float | None:
        """Of a million frames; None while nothing is imagined, or the price isn't known."""
        return self.node_price * nodes / 3600 / frames_per_s * 1e6 if self.node_price and frames_per_s else None

    def _tell_each(self, key: str, label: str, values: Mapping[str, float]) -> None:
        """What is not there any more, such as a worker that has ended, reads 0: Ray forgets nothing by itself."""
        gone = dict.fromkeys(self.labels[key] - values.keys(), 0.0)
        self.labels[key] = set(values)
        for name, value in {**gone, **values}.items():
            if math.isfinite(value):
                self.gauges[key].set(value, {label: name})


def read_telemetry(run: Path, stage: str | None = None) -> list[dict[str, Any]]:
    """Rows in order, of one stage or of all."""
    return read_events(Path(run) / FILE, stage)
