"""Several runs side by side, such as the seeds of one experiment, as Markdown."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cluster.inspection import load_inspection
from cluster.report import evaluations, z_score
from cluster.run import read_config
from dreamer4.errors import RunError
from dreamer4.files import read_json


def compare(paths: Sequence[Path]) -> str:
    """Tables of returns and successes per policy, of the world model, and of CPU seconds per stage.

    Raises:
        RunError: a path is no run, or no run has been evaluated.
    """
    names = [f"{path.name} (seed {read_config(path).seed})" for path in paths]
    measured = [evaluations(path) for path in paths]
    policies = list(dict.fromkeys(name for records in measured for name in records))
    if not policies:
        raise RunError(f"none of {', '.join(map(str, paths))} has been evaluated: dreamer4 evaluate --run RUN")
    rows = []
    for policy in policies:
        records = [records.get(policy) for records in measured]
        there = [record for record in records if record is not None]
        mean = f"{fmean(r['mean_return'] for r in there):.2f} ({100 * fmean(r['success'] for r in there):.0f} %)"
        rows.append([policy, *(cell(record) for record in records), mean])
    rows.append(["z, PMPO against BC", *(z_cell(records) for records in measured), ""])
    tables = [table(["policy", *names, "mean"], rows), *world_models(paths, names), *times(paths, names)]
    return "\n\n".join(tables)


def cell(record: dict[str, Any] | None) -> str:
    if record is None:
        return "-"
    return f"{record['mean_return']:.2f} ± {record['stderr']:.2f} ({100 * record['success']:.1f} %)"


def z_cell(records: dict[str, dict[str, Any]]) -> str:
    return f"{z_score(records['pmpo'], records['bc']):.1f}" if {"pmpo", "bc"} <= records.keys() else "-"


def world_models(paths: Sequence[Path], names: Sequence[str]) -> Iterable[str]:
    inspected = [load_inspection(path / "inspection") for path in paths]
    numbers = [found[0] if found else {} for found in inspected]
    lines = {
        "reconstruction, dB": lambda n: f"{n['reconstructions']['psnr']:.1f}",
        "agent's cell one step ahead": lambda n: f"{n['horizon']['agent_cell'][0]:.3f}",
        "the same, copying the last frame": lambda n: f"{n['horizon']['agent_cell_copy'][0]:.3f}",
        "action-shuffle ratio": lambda n: f"{n['actions']['ratio']:.2f}",
    }
    rows = []
    for name, show in lines.items():
        try:
            rows.append([name, *(show(n) if n else "-" for n in numbers)])
        except KeyError:  # not measured in this environment
            continue
    if any(numbers):
        yield table(["world model", *names], rows)


def times(paths: Sequence[Path], names: Sequence[str]) -> Iterable[str]:
    spent = [read_json(path / "timing.json") if (path / "timing.json").exists() else {} for path in paths]
    stages = list(dict.fromkeys(stage for one in spent for stage in one))
    rows = [[stage, *(f"{one[stage]['cpu_seconds']:.0f}" if stage in one else "-" for one in spent)] for stage in stages]
    rows.append(["total", *(f"{sum(stage['cpu_seconds'] for stage in one.values()):.0f}" for one in spent)])
    yield table(["CPU seconds", *names], rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
