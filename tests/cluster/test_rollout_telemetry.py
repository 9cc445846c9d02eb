"""Rows of stage 4: what is written is what Ray is told, and what has gone is told as 0."""

from pathlib import Path
from typing import Any, ClassVar

import pytest

from cluster.policy.messages import Cost
from cluster.policy.telemetry import METRICS, TelemetryWriter, exported, read_telemetry
from cluster.policy.throughput import Throughput


class Told:
    """In place of Ray's gauge: remembers the last value of every set of labels."""

    values: ClassVar[dict[tuple[str, ...], float]] = {}

    def __init__(self, name: str, text: str, tag_keys: tuple[str, ...]):
        self.name, self.default = name, {}
        assert text and tag_keys[:2] == ("run", "stage")

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self.default = tags

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        self.values[(self.name, *self.default.values(), *(tags or {}).values())] = value


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], float]:
    monkeypatch.setattr("cluster.policy.telemetry.Gauge", Told)
    monkeypatch.setattr(Told, "values", {})
    return Told.values


def row(**changed: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {key: {} if metric.by else 1.0 for key, metric in METRICS.items()}
    return {**{key: value for key, value in whole.items() if key != "cost_per_million_frames"}, **changed}


def test_row_is_written_and_told_under_its_name_in_prometheus(tmp_path: Path, told):
    (tmp_path / "run").mkdir()
    TelemetryWriter(tmp_path / "run", "policy").write(row(frames_per_s=512.0, workers_lost=0))
    (written,) = read_telemetry(tmp_path / "run", "policy")
    assert written.keys() == {*METRICS, "stage", "time"}
    assert told["dreamer_frames_per_s", "run", "policy"] == 512.0
    assert told["dreamer_workers_lost_total", "run", "policy"] == 0, "there before anything is lost"
    assert exported("workers_lost") == "ray_dreamer_workers_lost_total"


def test_worker_that_has_ended_reads_nothing(tmp_path: Path, told):
    writer = TelemetryWriter(tmp_path, "policy")
    writer.write(row(worker_frames_per_s={"1": 100.0, "2": 90.0}))
    writer.write(row(worker_frames_per_s={"2": 95.0, "3": 80.0}))
    rates = {key[-1]: value for key, value in told.items() if key[0] == "dreamer_worker_frames_per_s"}
    assert rates == {"1": 0.0, "2": 95.0, "3": 80.0}


def test_cost_is_of_all_nodes_and_absent_where_it_makes_no_sense(tmp_path: Path, told):
    """9 nodes at 2 an hour are 0.005 a second; at 1000 frames a second a million take 1000 s, so 5."""
    TelemetryWriter(tmp_path, "policy", node_price=2.0).write(row(nodes=9, frames_per_s=1000.0))
    TelemetryWriter(tmp_path, "policy", node_price=2.0).write(row(nodes=9, frames_per_s=0.0))
    TelemetryWriter(tmp_path, "policy").write(row(nodes=9, frames_per_s=1000.0))
    assert [one["cost_per_million_frames"] for one in read_telemetry(tmp_path)] == [pytest.approx(5.0), None, None]
    assert told["dreamer_cost_per_million_frames", tmp_path.name, "policy"] == pytest.approx(5.0)


def test_number_that_is_none_is_not_told(tmp_path: Path, told):
    TelemetryWriter(tmp_path, "policy").write(row(staleness=float("nan"), learner_metric={"kl": float("inf")}))
    names = {key[0] for key in told}
    assert "dreamer_staleness" not in names and "dreamer_learner_metric" not in names and "dreamer_step" in names


def test_rates_are_of_each_ready_worker_since_the_last_row():
    meter = Throughput(now=0.0)
    meter.rollout(Cost(100, 1.0, 1.0), 1.0, 0, "1")
    meter.rollout(Cost(100, 1.0, 1.0), 1.0, 0, "2")
    meter.rollout(Cost(100, 1.0, 1.0), 1.0, 0, "2")
    meter.tick(1.0, False, 0.0, 2)
    meter.learner(0.1, 0.1)
    first = meter.row(2.0, ["2", "3"])  # the first one has ended meanwhile
    assert first["worker_frames_per_s"] == {"2": 100.0, "3": 0.0}
    assert first["frames_per_s"] == 150.0 and first["frames_per_s_per_worker"] == 75.0
    assert first["since_update_s"] == 1.0
    assert meter.row(3.0, ["2"])["worker_frames_per_s"] == {"2": 0.0}
