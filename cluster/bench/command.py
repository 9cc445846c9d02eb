"""`dreamer4 bench`: runs what is asked for, prints a table, writes the JSON that other programs read."""

import argparse
import math
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from cluster.bench.loop import WEIGHTS_MB, WORKERS, broadcast_seconds, spilled_bytes, stand_in_run
from cluster.bench.real import long_run, plain_turn, prepare, ray_turn
from cluster.bench.stand_in import Costs
from cluster.presets import preset
from cluster.runtime import ray_session
from cluster.settings import override
from dreamer4.errors import ConfigError
from dreamer4.files import write_json
from learners.parallel import ParallelConfig

TURNS = 3
SECONDS = 12.0  # of a turn
UPDATES = 25
COSTS = Costs(rollout_seconds=0.3, update_seconds=0.8)


def bench_loop(minutes: float = 0.0, most_workers: int = WORKERS[-1]) -> dict[str, Any]:
    """Everything in one run on this machine.

    Args:
        minutes: of a long run with the real models, in which nothing may be spilled; 0 leaves it out.
        most_workers: stand-ins up to this many.

    Raises:
        ConfigError: one of these is impossible.
    """
    if not 0 <= minutes < math.inf or most_workers < 1:
        raise ConfigError(
            f"--minutes ({minutes:g}) must be finite and at least 0, and --most-workers ({most_workers}) at least 1"
        )
    config = override(preset("laptop"), ["resources.workers=2"])
    record: dict[str, Any] = {}
    with TemporaryDirectory(prefix="dreamer4-bench-") as name, ray_session(config):
        folder = Path(name)
        run = prepare(folder / "run")
        turns = [(plain_turn(run, SECONDS), ray_turn(run, SECONDS)) for _ in range(TURNS)]
        ratios = [there.frames_per_s / here.frames_per_s for here, there in turns]
        print("real models of laptop size, one worker    plain       in Ray      ratio")
        for (here, there), ratio in zip(turns, ratios, strict=True):
            print(f"{'imagined frames/s':38}{here.frames_per_s:9.0f}   {there.frames_per_s:9.0f}   {ratio:8.3f}")
        record |= {"ray_over_plain": median(ratios), "ray_over_plain_turns": ratios}
        record["plain_frames_per_s"] = median(here.frames_per_s for here, _ in turns)
        record["store_over_payload"] = max(there.store_over_payload for _, there in turns)
        print(f"{'bytes in the store / payload':38}{record['store_over_payload']:9.3f}")
        if minutes:
            record["long_minutes"], record["long_spilled_bytes"] = minutes, long_run(run, minutes, workers=2)
            print(f"{f'spilled in {minutes:g} minutes':38}{record['long_spilled_bytes']:9}")
        run.close()

        print(
            f"\nstand-ins: rollout {COSTS.rollout_seconds} s, update {COSTS.update_seconds} s, one rollout per worker"
        )
        print("workers   rollouts/s   learner busy   driver ms/rollout")
        for workers in (w for w in WORKERS if w <= most_workers):
            found = stand_in_run(workers, UPDATES, COSTS, folder)
            print(
                f"{workers:7} {found.rollouts_per_s:12.1f} {100 * found.learner_busy:12.1f} % "
                f"{found.driver_ms_per_rollout:19.2f}",
                flush=True,
            )
            record[f"learner_busy_{workers}"] = found.learner_busy
            record[f"driver_ms_per_rollout_{workers}"] = found.driver_ms_per_rollout
            record[f"rollouts_per_s_{workers}"] = found.rollouts_per_s

        print("\nnew weights, from the put to the last of 8 workers")
        for size in WEIGHTS_MB:
            record[f"broadcast_ms_{size}_mb"] = 1000 * broadcast_seconds(size, 8)
            print(f"{size:7} MB {record[f'broadcast_ms_{size}_mb']:10.1f} ms")
        record["spilled_bytes"] = spilled_bytes()
        print(f"\nspilled in all {record['spilled_bytes']} bytes")
    return record


def main(options: argparse.Namespace) -> None:
    """The verb, with the options of `cluster.bench.options`."""
    if options.what == "loop":
        record = bench_loop(options.minutes, options.most_workers)
    elif options.what == "data":
        from cluster.bench.data import bench_data

        record = bench_data()
    elif options.what == "imagination":
        from cluster.bench.imagination import bench_imagination

        gpu = options.device == "cuda"
        record = bench_imagination(
            options.preset,
            options.device,
            options.precision or ("bfloat16" if gpu else "float32"),
            options.engine or ("graphed" if gpu else "eager"),
            options.batches,
            options.frames,
            options.threads,
            options.turns,
            options.profile,
        )
    else:
        from cluster.bench.training import bench_training  # each kind of benchmark imports its own

        precision = options.precision or ("bfloat16" if options.device == "cuda" else "float32")
        record = bench_training(
            options.preset,
            options.stage,
            options.device,
            ParallelConfig(
                precision=precision, activation_checkpointing=options.checkpointing, compile=options.compile
            ),
            options.batch,
            options.length,
            options.threads,
            options.turns,
            options.profile,
        )
    if options.json is not None:
        write_json(options.json, record)
