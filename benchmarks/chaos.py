"""Random kills over a whole run: `python -m benchmarks.chaos [--kills 50] [--staleness 0|1] [--json FILE]`.

A run of stage 4 with real (smoke-sized) models on a cluster of a head and three nodes on this machine, its store and
registry in a real Redis. Again and again something is killed with SIGKILL: a worker, the learner, the coordinator, a
whole node, the head, the submitting client. In the end the ledger must show that every kill hit in mid-run and that
every promise of the loop was kept, and the policy must have the same bits as that of an undisturbed run.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

import torch

from benchmarks.drill import CPUS, KINDS, Drill, Kill, copy_of, prepare
from cluster.local.cluster import LocalCluster
from cluster.policy.ledger import broken_promises, read_ledger
from cluster.run import Run
from dreamer4.files import write_json

SAVE_EVERY = 5
PAUSE = 4  # updates between two kills, and as many again at random


def kinds(count: int, seed: int) -> list[str]:
    """What to kill, in order: every kind equally often."""
    chosen = [KINDS[number % len(KINDS)] for number in range(count)]
    random.Random(seed).shuffle(chosen)
    return chosen


def chaos(cluster: LocalCluster, run: Path, order: list[str], steps: int, seed: int, limit: float) -> list[Kill]:
    """Kills in that order, one every few updates, then waits for the end.

    Raises:
        RuntimeError: the run ends early, or doesn't go on.
    """
    drill, draw, kills, begin = (
        Drill(cluster, run, ["resources.workers=2"], seed),
        random.Random(seed),
        [],
        time.monotonic(),
    )
    try:
        for number, kind in enumerate(order):
            if time.monotonic() - begin > limit:
                raise RuntimeError(f"{number} of {len(order)} kills took more than {limit:g} s")
            target = drill.applied() + PAUSE + draw.randrange(PAUSE)
            drill.wait(lambda target=target: drill.applied() >= target)
            kills.append(drill.kill(kind, steps))
            last = kills[-1]
            when = f"{number + 1:3} {kind:12} at update {last.updates:4}"
            print(f"{when}: on after {last.seconds:5.1f} s, {last.redone} redone", flush=True)
        drill.finish()
    finally:
        drill.close()
    return kills


def same_policy(one: Path, other: Path) -> bool:
    mine, theirs = (Run.attach(path).checkpoints("policy").load().weights for path in (one, other))
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--staleness", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=3600, help="seconds that the kills may take")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    steps = options.kills * 2 * PAUSE + 60
    settings = [f"policy.steps={steps}", f"policy.save_every={SAVE_EVERY}", f"policy.max_staleness={options.staleness}"]
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        prepared, undisturbed, disturbed = (Path(folder) / name for name in ("prepared", "undisturbed", "disturbed"))
        prepare(prepared, [*settings, "policy.rollouts_per_step=2"])
        with LocalCluster(store="redis", dashboard=False) as cluster:
            for _ in range(3):
                cluster.add_node(CPUS)
            Drill(cluster, copy_of(prepared, undisturbed), ["resources.workers=3"]).finish(options.limit)
            begin = time.monotonic()
            order = kinds(options.kills, options.seed)
            kills = chaos(cluster, copy_of(prepared, disturbed), order, steps, options.seed, options.limit)
            seconds = time.monotonic() - begin
        events = read_ledger(disturbed, "policy")
        broken = broken_promises(events, steps, SAVE_EVERY)
        equal = same_policy(undisturbed, disturbed)
    counts = Counter(kill.kind for kill in kills)
    record = {
        "kills": len(kills),
        "by_kind": dict(counts),
        "steps": steps,
        "staleness": options.staleness,
        "seconds": round(seconds, 1),
        "hit_in_mid_run": all(0 < kill.updates < steps for kill in kills),
        "updates_redone": sum(event["event"] == "applied" for event in events) - steps,
        "rollouts_lost": sum(len(event["indices"]) for event in events if event["event"] == "lost"),
        "coordinators": sum(event["event"] == "coordinator" for event in events),
        "median_seconds": {kind: median(k.seconds for k in kills if k.kind == kind) for kind in counts},
        "broken_promises": broken,
        "final_state_equal": equal,
    }
    for name, value in record.items():
        print(f"{name:18} {value}")
    if options.json:
        write_json(options.json, record)
    return 0 if equal and not broken and record["hit_in_mid_run"] else 1


if __name__ == "__main__":
    sys.exit(main())
