import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import counting
import pytest
from driver import driver
from living import alive, eventually

from cluster.local.cluster import LocalCluster, LocalNode
from cluster.local.guard import offspring
from cluster.local.provider import Autoscaling
from cluster.local.ray_start import Machine
from dreamer4.errors import RunError

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
TESTS = Path(__file__).parents[1]

Call = Callable[..., object]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A head without a dashboard, of which nothing is left at the end."""
    with LocalCluster(dashboard=False, paths=[TESTS]) as cluster:
        yield cluster
        pids = family(cluster.head)
    assert len(pids) > 5 and not alive(pids)
    assert not cluster.folder.exists()


@pytest.fixture(scope="module")
def call(cluster: LocalCluster) -> Iterator[Call]:
    with driver(cluster.env()) as call:
        yield call


@pytest.fixture(scope="module")
def nodes(cluster: LocalCluster) -> dict[str, LocalNode]:
    """Two, with a resource of their name. The last test of each kills it: starting one is most of a test's time."""
    made = {name: cluster.add_node(cpus=2, resources={name: 2}, wait=False) for name in ("left", "right")}
    for node in made.values():
        cluster.wait(node)
    return made


def family(node: LocalNode | None) -> set[int]:
    assert node is not None
    return {node.process.pid, *offspring(node.process.pid)}


def test_actors_run_on_the_nodes_that_have_what_they_ask_for(cluster, call, nodes):
    assert call(counting.nodes) == {cluster.head.node_id, *(node.node_id for node in nodes.values())}
    for name, node in nodes.items():
        call(counting.place, name, name)
        where, process, count = call(counting.add, name)
        assert (where, count) == (node.node_id, 1)
        assert process in family(node)


def test_notice_is_seen_everywhere_and_goes_with_the_node(cluster, call, nodes):
    node = nodes["left"]
    call(counting.place, "spot", "left")
    before = call(counting.add, "spot")
    assert call(counting.draining, "spot") == (set(), set())
    cluster.drain_node(node, deadline=600)
    assert call(counting.draining, "spot") == ({node.node_id}, {node.node_id})
    assert call(counting.add, "spot") == (*before[:2], 2)  # what runs there goes on
    cluster.kill_node(node)
    assert eventually(lambda: node.node_id not in call(counting.nodes))
    assert call(counting.draining_nodes) == set()


def test_killed_node_takes_all_that_ran_there_with_it(cluster, call, nodes):
    node = nodes["right"]
    call(counting.place, "doomed", "right")
    _, process, _ = call(counting.add, "doomed")
    pids = family(node)
    assert process in pids
    cluster.kill_node(node)
    assert not node.alive and not alive(pids)
    assert call(counting.dies, "doomed")
    assert node.node_id not in call(counting.nodes)
    assert cluster.head.alive


def test_drivers_get_nothing_of_another_ray(cluster, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.9:1")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of another Ray")
    env = cluster.env()
    assert env["RAY_ADDRESS"] == cluster.address != "192.0.2.9:1"
    assert env["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in env
    assert Path(env["RAY_AUTH_TOKEN_PATH"]).stat().st_mode & 0o777 == 0o600


def test_failed_start_says_why(cluster):
    before = list(cluster.nodes)
    with pytest.raises(RunError, match=r"node 'n\d+' of the local cluster did not start: .*Invalid label"):
        cluster.add_node(labels={"role": "!"})
    assert cluster.nodes == before


def test_store_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RunError, match=r"redis-server is not installed: .*'rocksdb'"):
        LocalCluster(store="redis")


@pytest.mark.cluster
@pytest.mark.parametrize("store", ["redis", "rocksdb"])
def test_actors_outlive_the_head(store):
    with LocalCluster(store=store, dashboard=False, paths=[TESTS]) as cluster:
        node = cluster.add_node(cpus=2, resources={"here": 2})
        with driver(cluster.env()) as call:
            call(counting.place, "lasting", "here")
            where, process, _ = call(counting.add, "lasting")
        pids = family(cluster.head)
        address = cluster.address
        cluster.kill_head()
        assert not alive(pids) and node.alive
        cluster.restart_head()
        assert cluster.address == address
        with driver(cluster.env()) as call:
            assert call(counting.add, "lasting") == (where, process, 2) == (node.node_id, process, 2)
            call(counting.place, "new", "here")
            assert call(counting.add, "new")[0] == node.node_id
            assert call(counting.nodes) == {node.node_id, cluster.head.node_id}


@pytest.mark.cluster
def test_head_without_a_store_forgets():
    with LocalCluster(dashboard=False, paths=[TESTS]) as cluster:
        cluster.add_node(resources={"here": 1})
        with driver(cluster.env()) as call:
            call(counting.place, "lasting", "here")
            call(counting.add, "lasting")
        cluster.restart_head()
        with driver(cluster.env()) as call, pytest.raises(ValueError, match="lasting"):
            call(counting.add, "lasting")


@pytest.mark.cluster
def test_pending_groups_bring_nodes_and_idle_nodes_go():
    machine = Machine(cpus=2, gpus=2, labels={"role": "imagine"})
    autoscaling = Autoscaling(machine, max_nodes=2, idle_seconds=3)
    with LocalCluster(autoscaling=autoscaling, dashboard=False, paths=[TESTS]) as cluster:
        with driver(cluster.env()) as call:
            head = {cluster.head.node_id}
            assert call(counting.nodes) == head
            for _ in range(2):
                call(counting.reserve, [{"GPU": 1, "CPU": 1}] * 2)
            assert eventually(lambda: call(counting.reserved))
            first = call(counting.nodes) - head
            assert len(first) == 2
            lost = min(first)
            cluster.kill_launched(lost)
            assert eventually(lambda: len(call(counting.nodes) - head - {lost}) == 2)  # another one takes its place
            call(counting.free)
            assert eventually(lambda: call(counting.nodes) == head)
        pids = family(cluster.head)
    assert not alive(pids)


@pytest.mark.cluster
def test_harness_that_is_killed_leaves_no_process():
    """Also the only test of `connected`, which wants a process of its own."""
    script = """
import os, time
import ray
from cluster.local.guard import offspring
from cluster.local.cluster import LocalCluster

os.environ["RAY_ADDRESS"] = "192.0.2.9:1"
with LocalCluster(store="rocksdb") as cluster:
    cluster.add_node()
    for _ in range(2):
        with cluster.connected():
            assert ray.cluster_resources()["CPU"] == 1
    assert os.environ["RAY_ADDRESS"] == "192.0.2.9:1" and "RAY_AUTH_TOKEN_PATH" not in os.environ
    print(*offspring(os.getpid()), flush=True)
    time.sleep(1000)
"""
    root = TESTS.parent
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root) as harness:
        assert harness.stdout is not None
        pids = {int(word) for word in harness.stdout.readline().split()}
        assert len(pids) > 10
        harness.send_signal(signal.SIGKILL)
    assert eventually(lambda: not alive(pids))
