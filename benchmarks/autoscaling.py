"""Workers that come with their nodes, and go: `python -m benchmarks.autoscaling [--plot FILE] [--json FILE]`.

A real Ray cluster on this machine with Ray's autoscaler, whose "cloud" starts a `ray start` process for every node. The
loop of stage 4 runs on it with stand-ins of known cost: at first updates are cheap and the learner starves, so the
controller asks for workers, their pending placement groups bring nodes, and throughput rises; later updates are dear
and workers idle, so they are drained and given back, and the autoscaler takes the empty nodes away.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from matplotlib import pyplot

from cluster.bench.stand_in import Costs, StandInLearner, StandInRank
from cluster.local.cluster import LocalCluster
from cluster.local.provider import Autoscaling
from cluster.local.ray_start import REPOSITORY, Machine
from cluster.nodes import draining_nodes, living_nodes
from cluster.policy.autoscale import Autoscaler
from cluster.policy.ledger import Ledger, broken_promises, read_ledger
from cluster.policy.loop import ImaginationLoop
from cluster.policy.pool import Pool
from cluster.policy.schedule import Plan
from cluster.policy.worker_group import WorkerSpec
from dreamer4.files import write_json

MOST, PER_STEP = 5, 4
CHEAP_UPDATES = 60  # the learner starves
DEAR_UPDATES = 14  # the workers do
COSTS = Costs(rollout_seconds=0.5, update_seconds=0.1, later_from=CHEAP_UPDATES, later_seconds=4.0)
BASE_NODES = 2  # the head, and the node of the learner and the first worker
IDLE_SECONDS = 4.0


@dataclass(frozen=True)
class Story:
    """What happened: rows of the loop's telemetry with their `time`, and the ledger."""

    rows: list[dict[str, Any]]
    events: list[dict[str, Any]]
    nodes_at_the_end: int

    def at(self, workers: int) -> list[float]:
        """Imagined frames per second of the rows with so many workers, while updates were cheap."""
        return [r["frames_per_s"] for r in self.rows if r["workers_ready"] == workers and r["step"] < CHEAP_UPDATES]


def tell_story(folder: Path) -> Story:
    """One run from one worker to `MOST` and back."""
    plan = Plan(CHEAP_UPDATES + DEAR_UPDATES, PER_STEP, max_staleness=1, save_every=10)
    machine = Machine(cpus=1, object_store_mb=80)
    autoscaling = Autoscaling(machine, max_nodes=MOST - 1, idle_seconds=IDLE_SECONDS)
    rows: list[dict[str, Any]] = []
    ledger = Ledger(folder, "stand-in")
    with LocalCluster(autoscaling=autoscaling, dashboard=False, paths=[REPOSITORY]) as cluster:
        cluster.add_node(cpus=2)
        with cluster.connected():
            learner: Any = ray.remote(StandInLearner).options(num_cpus=1).remote(COSTS, folder)
            pool = Pool(WorkerSpec(StandInRank, (COSTS,)), "autoscaling", 1, 600, ledger.note, draining_nodes)
            loop = ImaginationLoop(
                plan,
                pool,
                learner,
                0,
                ledger,
                Autoscaler(1, MOST, 5.0, 1),
                lambda row: rows.append({"time": time.time(), **row}),
            )
            loop.run()
            pool.close()
            ray.kill(learner)
            deadline = time.monotonic() + 60
            while living_nodes() > BASE_NODES and time.monotonic() < deadline:
                time.sleep(0.5)
            rows.append(
                {
                    **rows[-1],
                    "time": time.time(),
                    "nodes": living_nodes(),
                    "workers_ready": 0,
                    "workers_wanted": 0,
                    "frames_per_s": 0.0,
                    "workers_pending": 0,
                }
            )
            at_the_end = living_nodes()
    events = read_ledger(folder)
    assert broken_promises(events, plan.steps, plan.save_every) == []
    return Story(rows, events, at_the_end)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Workers and nodes above, imagined frames per second below, over the seconds of the run."""
    seconds = [row["time"] - rows[0]["time"] for row in rows]
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 5), layout="constrained")
    for key, label in (
        ("workers_wanted", "workers wanted"),
        ("workers_pending", "workers pending"),
        ("workers_ready", "workers that imagine"),
        ("nodes", "nodes, with head"),
    ):
        above.step(seconds, [row[key] for row in rows], where="post", label=label)
    above.legend(loc="upper right", fontsize="small")
    below.plot(seconds, [row["frames_per_s"] for row in rows], color="black")
    below.set_ylabel("imagined frames/s")
    below.set_xlabel("seconds")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="PNG of workers, nodes and throughput over time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="autoscaling-") as folder:
        story = tell_story(Path(folder))
    first, most = story.at(1), story.at(MOST)
    record = {
        "most_workers": max(row["workers_ready"] for row in story.rows),
        "most_nodes": max(row["nodes"] for row in story.rows),
        "nodes_at_the_end": story.nodes_at_the_end,
        "frames_per_s_with_one": max(first, default=0.0),
        "frames_per_s_with_most": max(most, default=0.0),
        "resized": [event["wanted"] for event in story.events if event["event"] == "resize"],
    }
    for name, value in record.items():
        print(f"{name:24} {value}")
    if options.plot:
        draw(story.rows, options.plot)
    if options.json:
        write_json(options.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
