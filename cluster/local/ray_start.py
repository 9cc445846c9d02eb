"""The `ray start --block` commands of a cluster of several nodes on one machine, and the environment they need."""

import json
import os
import random
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dreamer4.errors import RunError

REPOSITORY = Path(__file__).resolve().parents[2]
STARTED = "Ray runtime started."  # what `ray start` prints when its node has registered with the head
RAY = (sys.executable, "-m", "ray.scripts.scripts")
WORKER_NICENESS = 5  # below Ray itself; its default, 15, leaves no room for workers that give way to other workers
SETTINGS = {
    "RAY_AUTH_MODE": "token",  # said everywhere: Ray's default depends on who starts it and on files in HOME
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else the workers of a driver under `uv run` download what it has
    "RAY_worker_niceness": str(WORKER_NICENESS),
    # Else a server of Ray Client dies now and then as the head forks it (ray-project/ray#63202).
    "GRPC_ENABLE_FORK_SUPPORT": "false",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "120",  # how long nodes wait for a head that is gone
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",  # a node that doesn't answer is dead after three times 1 + 2 s at most
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # else a node that is sent SIGTERM lingers for 30 s
}
# Ports that the kernel gives to nobody by itself (from 32768 on by default), so that they are still free when a head
# comes back to them, and those that Ray gives its workers by default are avoided as well.
PORTS = range(20_000, 32_000)


@dataclass(frozen=True)
class Machine:
    """What a node pretends to have."""

    cpus: float = 1
    gpus: float = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    object_store_mb: int = 150


def head_command(folder: Path, port: int, dashboard_port: int, client_port: int, object_store_mb: int) -> list[str]:
    """A head that runs no actors, so that nothing of a run dies with it; with its dashboard on loopback.

    Args:
        folder: for sockets, logs and spilled objects; its own.
    """
    ports = [f"--port={port}", f"--dashboard-port={dashboard_port}", f"--ray-client-server-port={client_port}"]
    command = ["--head", "--dashboard-host=127.0.0.1", "--disable-usage-stats", *ports]
    return _command(command, folder, Machine(cpus=0, object_store_mb=object_store_mb))


def node_command(folder: Path, address: str, machine: Machine) -> list[str]:
    """A node that joins the head at `address`."""
    return _command([f"--address={address}"], folder, machine)


def _command(first: Sequence[str], folder: Path, machine: Machine) -> list[str]:
    """Every port that isn't asked for is a free one, and `folder` differs, because the nodes share one machine.

    With a common folder two nodes that start at once race for the names of their sockets.
    """
    size = [f"--num-cpus={machine.cpus:g}", f"--num-gpus={machine.gpus:g}"]
    if machine.resources:
        size.append(f"--resources={json.dumps(dict(machine.resources))}")
    if machine.labels:
        size.append(f"--labels={','.join(f'{key}={value}' for key, value in machine.labels.items())}")
    memory = f"--object-store-memory={machine.object_store_mb * 1_000_000}"
    ports = ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
    rest = [f"--temp-dir={folder}", memory, "--include-log-monitor=false", *ports, "--log-color=false", "--block"]
    return [*RAY, "start", *first, *size, *rest]


def environment(token_path: Path, paths: Iterable[Path], settings: Mapping[str, str]) -> dict[str, str]:
    """Ours without what concerns another Ray, and with the token, the settings, and where code is imported from.

    `python` is this interpreter, also in jobs.
    """
    mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    there = mine.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join([*map(str, [REPOSITORY, *paths]), *filter(None, there)])
    programs = f"{Path(sys.executable).parent}{os.pathsep}{mine.get('PATH', os.defpath)}"
    return {
        **mine,
        "PATH": programs,
        "PYTHONPATH": path,
        **SETTINGS,
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        **settings,
    }


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens at.

    Raises:
        RunError: there are too few.
    """
    chosen: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        chosen.append(port)
        if len(chosen) == count:
            return chosen
    raise RunError(f"fewer than {count} ports between {PORTS.start} and {PORTS.stop} are free: stop something")
