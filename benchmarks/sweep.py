"""Many whole runs by one command: seeds, budgets, kinds of recordings; then their tables.

    python -m benchmarks.sweep runs/doorkey --preset doorkey --seeds 0 1 2 3 4
    python -m benchmarks.sweep runs/budget 'controls=[]' --preset doorkey --budgets 0.3 0.6 1.2 2.4
    python -m benchmarks.sweep runs/recordings --preset doorkey --vary data.frames 11000 44000 \
        --vary data.demonstrator.careless_epsilon 0.2 0.4

Each run is a `dreamer4 quickstart`, then a `dreamer4 diagnose`, in a folder named after what sets it apart. What is
finished is not done again: interrupted, the same command goes on. At the end: a line per run, with the CPU minutes
until its policy was there, `--plot` of success against them, and `dreamer4 compare` of runs that differ by seed only.
"""

import argparse
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cluster.config import IMITATION
from cluster.presets import preset
from cluster.reports.compare import compare, markdown
from cluster.reports.results import is_iql, read_evaluations, read_times
from dreamer4.files import read_json, write_json

TRAININGS = ("tokenizer_training", "dynamics_training", "agent_training", "policy", "filtered_bc_training")
TRAININGS += ("scratch_bc_training", "iql_training")
UNTIL_THE_POLICY = ("collect", "tokenizer", "encode", "dynamics", "agent", "policy")
LISTS = ("returns", "successes", "lengths", "seeds")  # of an evaluation, by episode: too much to keep
KEPT = ("config.json", "timing.json", "inspection/inspection.json", "diagnosis/diagnosis.json")
KEPT += ("finished/*.json", "evaluation/*.json")


@dataclass(frozen=True)
class Cell:
    """One run of the sweep, or several that differ by their seeds only."""

    name: str
    settings: tuple[str, ...]

    def path(self, root: Path, seed: int) -> Path:
        return root / (f"{self.name}-seed{seed}" if self.name else f"seed{seed}")


def cells(preset_name: str, budgets: list[float], varied: list[list[str]], settings: list[str]) -> list[Cell]:
    """Every budget with every combination of what is varied: lists of a key and its values."""
    axes = [[(key, value) for value in values] for key, *values in varied]
    found = []
    for budget in budgets:
        for chosen in itertools.product(*axes):
            parts = [f"{key.rpartition('.')[2]}{value}" for key, value in chosen]
            name = "-".join([f"budget{budget:g}", *parts] if len(budgets) > 1 else parts)
            varied_settings = (f"{key}={value}" for key, value in chosen)
            found.append(Cell(name, (*steps(preset_name, budget), *varied_settings, *settings)))
    return found


def steps(preset_name: str, budget: float) -> Iterator[str]:
    """Settings that give every training so many times the preset's updates; schedules end with them."""
    if budget == 1:
        return
    config = preset(preset_name)
    for section in TRAININGS:
        yield f"{section}.steps={max(1, round(budget * getattr(config, section).steps))}"


def play(path: Path, preset_name: str, seed: int, cell: Cell, windows: int) -> None:
    """One run from wherever it is to its end.

    Raises:
        RuntimeError: a command failed; its words are in the log that is named.
    """
    program = str(Path(sys.executable).with_name("dreamer4"))
    path.parent.mkdir(parents=True, exist_ok=True)
    quickstart = ["quickstart", "--preset", preset_name, "--run", str(path), f"seed={seed}", *cell.settings]
    diagnose = ["diagnose", "--run", str(path), "--windows", str(windows)]
    file = path.parent / f"{path.name}.log"
    with open(file, "a") as log:
        for command in (quickstart, diagnose):
            if command is diagnose and (not windows or diagnosed(path)):
                continue
            if subprocess.run([program, *command], stdout=log, stderr=log).returncode != 0:
                raise RuntimeError(f"`dreamer4 {' '.join(command)}` failed: see {file}")
    print(f"done    {path}", flush=True)


def diagnosed(path: Path) -> bool:
    """Whether the diagnosis knows all policies that were played in the real environment."""
    file = path / "diagnosis" / "diagnosis.json"
    if not file.exists():
        return False
    return all(played.stat().st_mtime <= file.stat().st_mtime for played in (path / "evaluation").glob("*.json"))


def play_all(runs: Sequence[Callable[[], None]], parallel: int) -> list[str]:
    """So many at once; what failed is told at the end, because the others go on. An interrupt begins no other."""
    pool = ThreadPoolExecutor(parallel)
    waiting, failures = [pool.submit(run) for run in runs], []
    try:
        for one in waiting:
            try:
                one.result()
            except RuntimeError as error:
                failures.append(str(error))
    finally:
        pool.shutdown(cancel_futures=True)
    return failures


def minutes(run: Path) -> float:
    """CPU minutes from the recordings to the policy."""
    return sum(time["cpu_seconds"] for stage, time in read_times(run).items() if stage in UNTIL_THE_POLICY) / 60


def summary(runs: list[Path]) -> list[str]:
    """A table with a line per run."""
    rows = []
    for run in runs:
        played = read_evaluations(run)
        families = [
            ["demonstrator"],
            ["bc"],
            [name for name in played if name in IMITATION],
            [name for name in played if is_iql(name)],
            ["pmpo"],
        ]
        best = [max((played[name]["success"] for name in names if name in played), default=None) for names in families]
        shares = ["–" if share is None else f"{100 * share:.1f} %" for share in best]
        rows.append([run.name, f"{minutes(run):.0f}", *shares])
    head = ["run", "CPU minutes to the policy", "recordings", "BC", "best other imitation", "best IQL", "PMPO"]
    return markdown(head, rows)


def draw(runs: dict[str, list[Path]], file: Path) -> None:
    """Success of PMPO against the CPU minutes it took, a point per run, a line through the means of a cell's seeds."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.add_subplot()
    points = [[(minutes(run), read_evaluations(run)["pmpo"]["success"]) for run in of] for of in runs.values()]
    axis.plot(*zip(*sorted(np.mean(of, axis=0).tolist() for of in points), strict=True), color="#0072b2")
    axis.scatter(*zip(*itertools.chain(*points), strict=True), color="#0072b2", s=14)
    axis.set(xscale="log", xlabel="CPU minutes from recordings to policy", ylabel="success", ylim=(-0.02, 1.04))
    axis.set_xticks([15, 30, 60, 120], ["15", "30", "60", "120"])
    axis.minorticks_off()
    figure.savefig(file, dpi=110)


def keep(run: Path, folder: Path) -> None:
    """What tables are made of, without models and without single episodes: small enough for a repository."""
    for file in (file for pattern in KEPT for file in run.glob(pattern)):
        record: dict[str, Any] = read_json(file)
        if file.parent.name == "evaluation":
            record = {name: value for name, value in record.items() if name not in LISTS}
        write_json(folder / file.relative_to(run), record)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of the runs")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of all runs")
    parser.add_argument("--preset", default="doorkey")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0], help="times the preset's updates")
    parser.add_argument("--vary", action="append", nargs="+", default=[], metavar=("KEY", "VALUE"))
    parser.add_argument("--parallel", type=int, default=1, help="runs at once")
    parser.add_argument("--windows", type=int, default=256, help="that `dreamer4 diagnose` looks at; 0: it is left out")
    parser.add_argument("--plot", type=Path, help="PNG of success against CPU minutes")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="copy there what the tables are made of")
    options = parser.parse_intermixed_args()
    if any(len(varied) == 1 for varied in options.vary):
        parser.error("--vary wants a key and at least one value")
    if swallowed := [value for varied in options.vary for value in varied if "=" in value]:
        parser.error(f"--vary got '{swallowed[0]}' as a value: give settings of all runs right after the folder")
    grid = cells(options.preset, options.budgets, options.vary, options.settings)
    failures = play_all(
        [
            partial(play, cell.path(options.root, seed), options.preset, seed, cell, options.windows)
            for seed, cell in itertools.product(options.seeds, grid)
        ],
        options.parallel,
    )
    if failures:
        print("\n".join(failures), file=sys.stderr)
        return 1
    runs = {cell.name: [cell.path(options.root, seed) for seed in options.seeds] for cell in grid}
    everything = [run for of in runs.values() for run in of]
    print("\n".join(summary(everything)))
    if len(options.seeds) > 1:
        for name, of in runs.items():
            print(f"\n{name}\n\n{compare(of)}".lstrip())
    if options.plot:
        draw(runs, options.plot)
    if options.keep:
        for run in everything:
            keep(run, options.keep / run.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
