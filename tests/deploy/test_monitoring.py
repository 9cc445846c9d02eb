"""Prometheus on a real Ray that runs the loop with stand-ins: what is on the dashboard exists, and moves."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple
from urllib.request import urlopen

import pytest
import ray
from living import eventually
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from benchmarks.dashboard import COSTS, SETTINGS, start_load
from cluster.dashboard.command import live_source
from cluster.dashboard.page import PageServer
from cluster.dashboard.panels import ROWS, Line, gauge
from cluster.dashboard.source import FileSource, PrometheusSource, Scope, scoped
from cluster.local.cluster import LocalCluster
from cluster.local.ray_start import REPOSITORY
from cluster.policy.telemetry import METRICS, exported

PANELS = [panel for panels in ROWS.values() for panel in panels]
HERE = [(panel, line) for panel in PANELS if not panel.gpu for line in panel.lines]
# What needn't change while nothing goes wrong.
STILL = {"draining", "lost in all", "planned", "limit", "nodes", "spilled", "there"}
# What hardly does: whether it can be seen to in a minute depends on the machine.
SLOW = {
    "all nodes",
    "free",
    "used",
    "workers idle",
    "staleness",
    "weights lag",
    "wait for a worker",
    "wait for the learner",
}
PATIENCE = 240.0
ENOUGH = 8  # points of the curve of throughput with one worker, and with two
RUN = "loaded"


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


class Live(NamedTuple):
    source: PrometheusSource
    scope: Scope
    folder: Path  # of the run


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A loop that has grown from one worker to two, and has been scraped since."""
    if os.environ.get("DREAMER4_NO_PROMETHEUS") == "1":
        pytest.skip("DREAMER4_NO_PROMETHEUS=1")
    if shutil.which("prometheus") is None:
        pytest.fail("prometheus is not on PATH: `apt-get install prometheus`, or set DREAMER4_NO_PROMETHEUS=1", False)
    ray.shutdown()  # of whatever test was here before: one process has one connection
    folder = tmp_path_factory.mktemp("live") / RUN
    folder.mkdir()
    with (
        LocalCluster(paths=[REPOSITORY, REPOSITORY / "tests"], settings=SETTINGS) as cluster,
        live_source(cluster.folder, cluster.dashboard_url, cluster.token_path) as (source, _),
    ):
        cluster.add_node(cpus=3)  # for the learner, the loop and one worker
        with cluster.connected():
            start = time.time()
            start_load(folder, most=2, costs=COSTS, scale_seconds=4)
            pending = f'max({exported("workers_pending")}{{run="{RUN}"}} > 0)'
            eventually(lambda: points(source, start, 1) >= ENOUGH and source.value(pending) != [], PATIENCE, pause=1)
            cluster.add_node(cpus=2)  # for the second one, which has waited long enough to be seen
            eventually(
                lambda: points(source, start, 2) >= ENOUGH and not missing(source, HERE) and not still(source, start),
                PATIENCE,
                pause=1,
            )
            yield Live(source, Scope(RUN, "policy", start, time.time()), folder)


def points(source: PrometheusSource, start: float, workers: int) -> int:
    """Of the curve of throughput, with so many workers."""
    return len(throughput(source, Scope(RUN, "policy", start, time.time())).get(workers, []))


def throughput(source: PrometheusSource, scope: Scope) -> dict[int, list[float]]:
    """Frames per second, by the number of workers that were ready then."""
    workers, frames = (
        {when: value for curve in source.curves(gauge("", key), scope) for when, value in curve.points}
        for key in ("workers_ready", "frames_per_s")
    )
    rates: dict[int, list[float]] = {}
    for when in sorted(workers.keys() & frames.keys()):
        rates.setdefault(int(workers[when]), []).append(frames[when])
    return rates


def missing(source: PrometheusSource, lines: list) -> set[str]:
    """Lines whose query gives nothing."""
    return {
        f"{panel.title}: {line.name}" for panel, line in lines if not source.value(scoped(line.query, RUN, "policy"))
    }


def still(source: PrometheusSource, start: float) -> set[str]:
    """Lines that had one value only, of those that should have several."""
    scope = Scope(RUN, "policy", start, time.time())
    found = set()
    for panel, line in HERE:
        values = {value for curve in source.curves(line, scope) for _, value in curve.points}
        if len(values) < 2 and line.name not in STILL | SLOW:
            found.add(f"{panel.title}: {line.name}")
    return found


def test_every_query_of_the_dashboard_gives_something(live):
    assert missing(live.source, HERE) == set()


def test_query_of_a_metric_that_nobody_exports_is_noticed(live):
    ghost = Line("ghost", gauge("", "step").query.replace("dreamer_step", "dreamer_ghost"))
    other = Line("other run", scoped(gauge("", "step").query, "another", "policy"))
    assert missing(live.source, [(PANELS[0], ghost), (PANELS[0], other)]) == {
        f"{PANELS[0].title}: ghost",
        f"{PANELS[0].title}: other run",
    }


def test_what_is_shown_moves_under_load(live):
    assert still(live.source, live.scope.start) == set()


def test_every_metric_of_the_code_is_exported_with_its_labels(live):
    for key, metric in METRICS.items():
        found = live.source.value(f'{exported(key)}{{run="{RUN}"}}')
        assert found, key
        assert all(labels["stage"] == "policy" for labels, _ in found)
        assert metric.by is None or all(labels[metric.by] for labels, _ in found), key


def test_throughput_rises_with_workers(live):
    rates = throughput(live.source, live.scope)
    assert {1, 2} <= rates.keys(), f"numbers of workers that were seen: {sorted(rates)}"
    assert median(rates[2]) > 1.3 * median(rates[1])


def test_queries_for_gpus_are_answered_and_name_what_ray_exports(live):
    """No GPU here, so they give nothing; the names are those of Ray's own reporter."""
    for panel in PANELS:
        if panel.gpu:
            for line in panel.lines:
                assert live.source.value(line.query) == []
                assert any(f"ray_{name}" in line.query for name in METRICS_GAUGES), line.query


def test_alert_rules_are_evaluated_and_a_balanced_run_raises_none_of_them(live):
    with urlopen(f"{live.source.url}/api/v1/rules") as answer:
        groups = json.load(answer)["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) >= 5 and {rule["health"] for rule in rules} == {"ok"}, rules
    assert live.source.alerts() == []


def test_page_shows_the_same_panels(live):
    assert live.source.runs() == [(RUN, "policy")]
    with PageServer(live.source) as page, urlopen(f"{page.url}/data?seconds=0") as answer:
        told = json.load(answer)
    shown = {panel["title"] for row in told["rows"] for panel in row["panels"]}
    assert shown == {panel.title for panel in PANELS if not panel.gpu}
    assert told["latest"]["frames_per_s"] > 0 and told["latest"]["workers_ready"] == 2
    assert told["diagnosis"]["text"]


def test_telemetry_in_the_run_gives_the_same_curves(live):
    """The page without Prometheus: what Prometheus scraped of the run is what was written there."""
    written = FileSource([live.folder])
    assert written.runs() == [(RUN, "policy")]
    lines = [line for panel, line in HERE if line.key]
    assert len(lines) > 25
    for line in lines:
        names = {curve.name for curve in written.curves(line, live.scope)}
        assert names >= {curve.name for curve in live.source.curves(line, live.scope)}, line
    step = gauge("", "step")
    rows = dict(written.curves(step, live.scope)[0].points)
    scraped = live.source.curves(step, live.scope)[0].points
    assert {value for _, value in scraped} <= set(rows.values())
