"""The dashboard under load: `python -m benchmarks.dashboard --picture docs/dashboard.png`, which takes Chromium.

A real Ray cluster on this machine whose autoscaler starts a `ray start` process for each node, the loop of stage 4 with
stand-ins of known cost on it, a Prometheus that scrapes it, and the page. The run begins with one worker; the learner
starves, so workers and their nodes come, and throughput rises. The picture is taken when it has.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from numpy.random import default_rng

from cluster.bench.stand_in import Costs, StandInLearner, StandInRank, StandInRollout, StandInWeights
from cluster.dashboard.command import live_source
from cluster.dashboard.page import PageServer
from cluster.local.cluster import LocalCluster
from cluster.local.provider import Autoscaling
from cluster.local.ray_start import REPOSITORY, Machine
from cluster.nodes import draining_nodes
from cluster.policy.autoscale import Autoscaler
from cluster.policy.ledger import Ledger
from cluster.policy.loop import ImaginationLoop
from cluster.policy.messages import Told
from cluster.policy.pool import Pool
from cluster.policy.schedule import Plan
from cluster.policy.telemetry import TelemetryWriter
from cluster.policy.worker_group import WorkerSpec
from dreamer4.errors import RunError

SETTINGS = {
    "RAY_metrics_report_interval_ms": "1000",  # as often as the page asks, instead of every ten seconds
    "RAY_health_check_failure_threshold": "30",  # nothing is killed here, but the machine may be busy
}
MOST, PER_STEP = 5, 4
COSTS = Costs(rollout_seconds=0.5, update_seconds=0.3)
SIZE = 1400, 1450  # of the picture: as far as the charts of throughput and waiting
STAYS = 45  # seconds with all workers, before the picture is taken


class MeasuringLearner(StandInLearner):
    """A stand-in that tells what a real learner tells; the numbers mean nothing."""

    def step(self, token: int, index: int, save: bool, *rollouts: StandInRollout) -> tuple[Told, StandInWeights]:
        told, weights = super().step(token, index, save, *rollouts)
        draw = default_rng(index)
        names = ("imagined_return", "value_start", "entropy", "kl", "policy", "value", "policy_norm", "value_norm")
        metrics = {name: float(draw.uniform(0.4, 0.6)) for name in names}
        return Told(**{**vars(told), "metrics": metrics}), weights


class Load:
    """The loop in an actor of its own, as the coordinator holds it: Ray exports metrics of actors only."""

    def __init__(self, folder: Path, most: int, costs: Costs, scale_seconds: float):
        self.stopped = False
        learner: Any = ray.remote(MeasuringLearner).options(num_cpus=1).remote(costs, folder)
        ledger = Ledger(folder, "policy")
        self.pool = Pool(WorkerSpec(StandInRank, (costs,)), "load", 1, 600, ledger.note, draining_nodes)
        self.loop = ImaginationLoop(
            Plan(1_000_000, PER_STEP),
            self.pool,
            learner,
            0,
            ledger,
            Autoscaler(1, most, scale_seconds, 1),
            TelemetryWriter(folder, "policy", node_price=2.0).write,
            lambda: self.stopped,
        )

    def run(self) -> None:
        self.loop.run()
        self.pool.close()

    def workers(self) -> int:
        return self.pool.counts["ready"]

    def stop(self) -> None:
        self.stopped = True


def start_load(folder: Path, most: int, costs: Costs = COSTS, scale_seconds: float = 8.0) -> Any:
    """The handle of a `Load` that runs."""
    load = ray.remote(Load).options(num_cpus=0.01, max_concurrency=2).remote(folder, most, costs, scale_seconds)
    load.run.remote()
    return load


def wait(reached: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise RunError(f"nothing came of it for {seconds:g} s")
        time.sleep(0.5)


def take_picture(url: str, path: Path) -> None:
    """What Chromium shows."""
    program = shutil.which("chromium")
    if program is None:
        raise RunError("chromium is not installed: `apt-get install chromium`")
    size = ",".join(map(str, SIZE))
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={size}"]
    command += ["--virtual-time-budget=6000", f"--screenshot={path.absolute()}", url]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, metavar="PNG")
    parser.add_argument("--seconds", type=float, default=STAYS, help="with all workers")
    options = parser.parse_args()
    autoscaling = Autoscaling(Machine(cpus=1, object_store_mb=80), max_nodes=MOST, idle_seconds=10)
    with (
        tempfile.TemporaryDirectory(prefix="dashboard-") as folder,
        LocalCluster(autoscaling=autoscaling, paths=[REPOSITORY], settings=SETTINGS) as cluster,
        live_source(cluster.folder, cluster.dashboard_url, cluster.token_path) as (source, _),
        PageServer(source) as page,
    ):
        run = Path(folder) / "imagination"
        run.mkdir()
        cluster.add_node(cpus=2)
        print(f"page    {page.url}", flush=True)
        with cluster.connected():
            load = start_load(run, MOST)
            wait(lambda: ray.get(load.workers.remote()) == MOST, 400)
            time.sleep(options.seconds)
            if options.picture:
                take_picture(f"{page.url}/?seconds=0", options.picture)
                print(f"picture {options.picture}")
            load.stop.remote()
    return 0


if __name__ == "__main__":
    sys.exit(main())
