"""Who doesn't have the token can't use a cluster in any way; on a real one, and who has it can in every one of them.

The intruders know every address and port. They try with no token at all and with a wrong one.
"""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from living import eventually

from cluster.local.cluster import LocalCluster
from cluster.local.ray_start import RAY

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

INTRUDERS = ("nothing", "wrong")
LISTENS, LOOPBACK = "0A", "0100007F"  # in /proc/net/tcp
# What the dashboard tells and does; a way that doesn't exist for these arguments is denied to intruders all the same.
ASKED = ("/api/version", "/nodes?view=summary", "/logical/actors", "/api/jobs/", "/api/cluster_status", "/events")
DENIED = (*ASKED, "/api/v0/actors", "/api/v0/logs?node_id=x", "/api/packages/gcs/x.zip", "/api/actors/kill?actor_id=x")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def environments(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Of processes that come from elsewhere, by what they know; none has a HOME where Ray might find a token."""
    home = tmp_path_factory.mktemp("intruder")
    wrong = home / "token"
    wrong.write_text("0" * 64)
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    bare |= {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "RAY_gcs_rpc_server_connect_timeout_s": "3"}
    return {
        "nothing": {**bare, "RAY_AUTH_MODE": "disabled"},
        "wrong": {**bare, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(wrong)},
        "right": {**bare, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(cluster.token_path)},
    }


@pytest.fixture(scope="module")
def attempts(
    cluster: LocalCluster, environments: Mapping[str, Mapping[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], subprocess.CompletedProcess[str]]:
    """All at the same time: drivers, drivers through the client's port, and nodes, which may try for long."""
    attach = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print('nodes:', len(ray.nodes()))"
    client = f"ray://127.0.0.1:{cluster._ports[2]}"
    running = {}
    for who, env in environments.items():
        folder = tmp_path_factory.mktemp(who)
        commands = {
            "driver": [sys.executable, "-c", attach, cluster.address],
            "client": [sys.executable, "-c", attach, client],
            "node": [*RAY, "start", "--block", f"--address={cluster.address}", "--num-cpus=1", *node_options(folder)],
        }
        if who == "right":
            del commands["node"]  # would stay; test_node_with_the_token_joins
        for how, command in commands.items():
            pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            running[how, who] = subprocess.Popen(command, env=env, cwd=folder, text=True, **pipes)
    try:
        outputs = {key: process.communicate(timeout=300)[0] for key, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
    return {
        key: subprocess.CompletedProcess(process.args, process.returncode, outputs[key])
        for key, process in running.items()
    }


def node_options(folder: Path) -> list[str]:
    return ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0", f"--temp-dir={folder}/r"]


def ask(cluster: LocalCluster, way: str, who: str, body: object = None) -> tuple[int, str]:
    """Status and answer of the dashboard."""
    token = {"nothing": None, "wrong": "0" * 64, "right": cluster.token_path.read_text()}[who]
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(cluster.dashboard_url + way, data, {"Content-Type": "application/json"})
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_dashboard_tells_nothing_without_the_token(cluster):
    for way in DENIED:
        assert [ask(cluster, way, who)[0] for who in INTRUDERS] == [401, 403], way
    assert {way: ask(cluster, way, "right")[0] for way in ASKED} == dict.fromkeys(ASKED, 200)


def test_only_liveness_is_told_to_everybody(cluster):
    """What probes of Kubernetes ask for."""
    assert ask(cluster, "/api/gcs_healthz", "nothing") == (200, "success")


def test_jobs_are_run_for_nobody_without_the_token(cluster, tmp_path):
    """The job that is refused to the others runs for who has the token."""
    jobs = {who: {"entrypoint": f"mkdir {tmp_path / who}"} for who in (*INTRUDERS, "right")}
    assert [ask(cluster, "/api/jobs/", who, jobs[who])[0] for who in INTRUDERS] == [401, 403]
    status, answer = ask(cluster, "/api/jobs/", "right", jobs["right"])
    assert status == 200, answer
    assert eventually(lambda: (tmp_path / "right").exists())
    known = json.loads(ask(cluster, "/api/jobs/", "right")[1])
    assert [job["entrypoint"] for job in known if job["type"] == "SUBMISSION"] == [jobs["right"]["entrypoint"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["right"]


@pytest.mark.parametrize("how", ["driver", "client", "node"])
@pytest.mark.parametrize("who", INTRUDERS)
def test_who_lacks_the_token_does_not_get_in(attempts, how, who):
    done = attempts[how, who]
    assert done.returncode != 0 and "nodes:" not in done.stdout, done.stdout
    reason = "client connection timeout" if how == "client" else "Authentication token is missing or incorrect"
    assert reason in done.stdout, done.stdout


@pytest.mark.parametrize("how", ["driver", "client"])
def test_who_has_the_token_gets_in(cluster, attempts, how):
    done = attempts[how, "right"]
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "nodes: 1"), done.stdout + servers_log(cluster)


def servers_log(cluster: LocalCluster) -> str:
    """What the cluster's side of Ray Client has said, for whom it did not let in."""
    logs = sorted(cluster.folder.glob("head/session_latest/logs/ray_client_server*"))
    return "".join(f"\n== {log.name}\n{log.read_text()[-3000:]}" for log in logs)


def test_node_with_the_token_joins_and_no_other_has(cluster, attempts):
    node = cluster.add_node()
    nodes = json.loads(ask(cluster, "/api/v0/nodes", "right")[1])["data"]["result"]["result"]
    assert {row["node_id"] for row in nodes} == {cluster.head.node_id, node.node_id}


def test_token_is_for_its_owner_only_and_the_dashboard_on_loopback(cluster):
    assert cluster.token_path.stat().st_mode & 0o777 == 0o600
    assert cluster.token_path.parent.stat().st_mode & 0o077 == 0
    port = cluster.dashboard_url.rpartition(":")[2]
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    hosts = {words[1][:8] for words in listening if words[1][9:] == f"{int(port):04X}" and words[3] == LISTENS}
    assert hosts == {LOOPBACK}
