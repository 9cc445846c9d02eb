"""Stage 4 over three hosts with networks of their own: one is cut off and comes back, another loses power."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.network import Network, usable

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def namespaces() -> None:
    if why := usable():
        pytest.skip(f"no network namespaces here: {why}")


def reaches(network: Network, host: int, other: int) -> bool:
    """Whether a packet gets there within a second."""
    script = "import socket, sys; socket.create_connection((sys.argv[1], 9), timeout=1)"
    done = subprocess.run(
        [*network.inside(host), sys.executable, "-c", script, network.address(other)], capture_output=True, text=True
    )
    return "ConnectionRefusedError" in done.stderr  # nobody listens there, and that is an answer


def test_cable_connects_can_be_pulled_and_put_back():
    with Network(2) as network:
        assert reaches(network, 1, 2) and reaches(network, 2, 1)
        network.cut(2)
        assert not reaches(network, 1, 2) and not reaches(network, 2, 1)
        network.restore(2)
        assert reaches(network, 1, 2)
        name = network.inside(1)[-1]
        assert name in namespaces_there()
    assert name not in namespaces_there()


def test_hosts_of_a_killed_process_are_removed_by_the_next():
    script = (
        "import os, signal; from benchmarks.network import Network; n = Network(1); print(n.inside(1)[-1], flush=True)"
    )
    script += "; os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    name = done.stdout.strip()
    assert name in namespaces_there()
    with Network(1):
        assert name not in namespaces_there()


def namespaces_there() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.timeout(1800)
def test_run_survives_a_pulled_cable_and_a_killed_host_and_ends_with_the_same_bits(tmp_path):
    record = tmp_path / "record.json"
    command = [sys.executable, "-m", "benchmarks.hosts", "--json", str(record)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(record.read_text())
    assert [kill["kind"] for kill in found["kills"]] == ["cable", "host"]
    assert all(0 < kill["updates"] < found["steps"] for kill in found["kills"])
    assert len(found["coordinators"]) >= 2, "the one that was cut off was succeeded"
    assert found["coordinators"] == sorted(set(found["coordinators"]))
    assert found["broken_promises"] == [] and found["final_state_equal"]
