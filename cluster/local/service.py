"""A cluster on this machine as long as this command runs, with Prometheus and the dashboard: deploy/local-cluster.sh.

Redis keeps the head's memory, so a head that dies could come back. Nodes come when something waits for a place, and go
when they are idle. For trying things out and for one large machine; a real cluster has a machine per node.
"""

import argparse
import os
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from cluster.dashboard.command import live_source
from cluster.dashboard.page import PageServer
from cluster.local.cluster import LocalCluster
from cluster.local.provider import Autoscaling
from cluster.local.ray_start import REPOSITORY, Machine
from dreamer4.errors import DreamerError
from dreamer4.files import write_atomic

SETTINGS = {
    "RAY_metrics_report_interval_ms": "2000",
    "RAY_health_check_failure_threshold": "10",  # the machine is everybody's, and may be busy
}
PUBLIC = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_USAGE_STATS_ENABLED")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs until it is interrupted or terminated. The exit status is 0 then, and 2 after a mistake of the user."""
    parser = argparse.ArgumentParser(prog="local-cluster.sh start", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="folder for `env` and `pid`")
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="of every node, by default 2")
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help="of every node, by default none")
    parser.add_argument("--max-nodes", type=int, default=4, metavar="N", help="besides the head, by default 4")
    parser.add_argument("--idle-seconds", type=float, default=60, metavar="S", help="until a node goes, by default 60")
    parser.add_argument("--store", choices=["redis", "rocksdb"], default="redis", help="for the head's memory")
    parser.add_argument("--object-store-mb", type=int, default=500, metavar="MB", help="of every node, by default 500")
    parser.add_argument("--port", type=int, metavar="N", help="of the page, by default the first free one from 8300 on")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        serve(options)
    except DreamerError as error:
        print(f"local-cluster: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped, and nothing is left over", flush=True)
    finally:
        for name in ("env", "pid"):
            (options.state / name).unlink(missing_ok=True)
    return 0


def serve(options: argparse.Namespace) -> None:
    write_atomic(options.state / "pid", f"{os.getpid()}\n".encode())
    machine = Machine(options.cpus, options.gpus, object_store_mb=options.object_store_mb)
    autoscaling = Autoscaling(machine, max_nodes=options.max_nodes, idle_seconds=options.idle_seconds)
    print("starting, which takes a quarter of a minute or more", flush=True)
    with (
        LocalCluster(
            store=options.store, autoscaling=autoscaling, object_store_mb=options.object_store_mb, settings=SETTINGS
        ) as cluster,
        live_source(cluster.folder, cluster.dashboard_url, cluster.token_path) as (source, grafana),
        PageServer(source, options.port) as page,
    ):
        environment = cluster.env()
        lines = [f"export {name}={shlex.quote(environment[name])}" for name in PUBLIC]
        file = options.state / "env"
        write_atomic(file, ("\n".join(lines) + "\n").encode())
        for name, value in {
            "page": page.url,
            "grafana": grafana or "not installed",
            "prometheus": source.url,
            "ray": f"{cluster.dashboard_url}  (asks for the token in {cluster.token_path})",
            "head": f"{cluster.address}, its memory in {options.store}",
            "nodes": f"up to {options.max_nodes} of {options.cpus} CPUs, as needed",
        }.items():
            print(f"{name:11}{value}")
        print(
            f"\nin another terminal:\n  source {shlex.quote(str(file))}\n  cd {shlex.quote(str(REPOSITORY))}\n"
            "  ray job submit --working-dir . -- dreamer4 train policy --run /ABSOLUTE/PATH/OF/THE/RUN\n"
            "\nan interrupt, or `local-cluster.sh stop`, ends it",
            flush=True,
        )
        threading.Event().wait()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Once: while we clean up, more of them would only leave something over."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
