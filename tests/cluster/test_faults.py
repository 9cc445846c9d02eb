"""Stage 4 with the real models on a real cluster of several nodes, while parts of it are killed with SIGKILL."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from states import assert_equal

from benchmarks.drill import ACTORS, CPUS, KINDS, Drill, copy_of, prepare, processes
from cluster.local.cluster import LocalCluster
from cluster.policy.ledger import broken_promises, read_ledger
from cluster.registry.registry import open_registry
from cluster.run import Run
from cluster.telemetry import read_metrics

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.xdist_group("ray")]

STEPS, SAVE_EVERY = 150, 5
SETTINGS = [f"policy.steps={STEPS}", f"policy.save_every={SAVE_EVERY}", "policy.rollouts_per_step=2"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is ready for stage 4."""
    path = tmp_path_factory.mktemp("prepared") / "run"
    prepare(path, [*SETTINGS, "policy.max_staleness=1"])
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(store="redis", dashboard=False) as made:
        for _ in range(3):
            made.add_node(CPUS)
        yield made


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, cluster: LocalCluster) -> Path:
    """What the same run gives when nobody kills anything, with one worker."""
    run = copy_of(prepared, prepared.parent / "undisturbed")
    drill = Drill(cluster, run)
    drill.finish()
    assert broken_promises(read_ledger(run, "policy"), STEPS, SAVE_EVERY) == []
    assert not any(event["event"] in ("rewind", "lost") for event in read_ledger(run, "policy"))
    return run


def test_killed_in_every_way_in_one_run_it_ends_with_the_same_bits(
    prepared: Path, cluster: LocalCluster, undisturbed: Path, tmp_path: Path
) -> None:
    run = copy_of(prepared, tmp_path / "run")
    drill = Drill(cluster, run, ["resources.workers=2"])
    versions = []
    try:
        kills = []
        for number, kind in enumerate(KINDS):
            drill.wait(lambda number=number: drill.updates() >= 8 * (number + 1))
            kills.append(drill.kill(kind, STEPS))
            versions.append(open_registry(run).read()["weights_version"])
        drill.finish()
    finally:
        drill.close()
    events = read_ledger(run, "policy")
    assert broken_promises(events, STEPS, SAVE_EVERY) == []
    assert [kill.kind for kill in kills] == list(KINDS)
    assert all(0 < kill.updates < STEPS for kill in kills), "each hit in mid-run"
    assert any(event["event"] == "rewind" for event in events), "updates were done again"
    assert any(event["event"] == "lost" and event["indices"] for event in events), "rollouts were imagined again"
    assert sum(event["event"] == "coordinator" for event in events) >= 2, "a coordinator took over"
    assert all(kill.redone <= SAVE_EVERY for kill in kills), kills
    assert versions == sorted(versions), "nobody is told of an older version"
    mine, theirs = (Run.attach(path).checkpoints("policy").load() for path in (run, undisturbed))
    assert mine.step == theirs.step == STEPS
    assert_equal(mine.weights, theirs.weights)
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl", "policy")] == list(range(STEPS))
    tokens = [event["token"] for event in events if event["event"] == "coordinator"]
    assert tokens == sorted(set(tokens))


def test_nothing_of_the_run_is_left_on_the_cluster(cluster: LocalCluster, undisturbed: Path) -> None:
    left = [process for kind in ACTORS for process in processes(cluster, kind)]
    psutil.wait_procs(left, timeout=90)
    assert [process for kind in ACTORS for process in processes(cluster, kind)] == []
