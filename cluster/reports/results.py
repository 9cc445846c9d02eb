"""What a run directory holds in the end, read for tables: evaluations, and the price of every stage."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster.config import CONTROLS, IMITATION
from dreamer4.files import read_json

# Names as tables show them, in their order: references, imitation, imagination, controls.
POLICIES = {
    "random": "random",
    "demonstrator": "demonstrator",
    "scratch_bc": "BC without a world model",
    "scratch_bc_success": "the same, successes only",
    "scratch_bc_return": "the same, best returns only",
    "bc": "BC",
    "filtered_bc": "filtered BC",
    "filtered_bc_return": "filtered BC, best returns",
    "iql": "IQL",
    "pmpo": "PMPO",
    "horizon_1": "PMPO, horizon 1",
    "shuffled": "PMPO, another trajectory's actions",
}
STAGES = ("collect", "tokenizer", "encode", "dynamics", "agent", "policy", *CONTROLS, "evaluate", "inspect")


def read_evaluations(run: Path) -> dict[str, dict[str, Any]]:
    """The records of `evaluation/POLICY.json`, by policy, in the order of tables."""
    names = in_order(file.stem for file in (Path(run) / "evaluation").glob("*.json"))
    return {name: read_json(Path(run) / "evaluation" / f"{name}.json") for name in names}


def in_order(policies: Iterable[str]) -> list[str]:
    """Every policy once, as `POLICIES` has them; others at the end."""
    known = list(POLICIES)

    def place(name: str) -> tuple[int, str]:
        kind = name.partition("@")[0]
        return (known.index(kind) if kind in known else len(known), name)

    return sorted(set(policies), key=place)


def is_iql(policy: str) -> bool:
    """Of whatever temperature."""
    return policy.partition("@")[0] == "iql"


def baseline(policy: str) -> bool:
    """Whether it learns from the recordings without imagination; BC itself, where imagination starts, apart."""
    return policy in IMITATION or is_iql(policy)


def label(policy: str) -> str:
    kind, _, temperature = policy.partition("@")
    name = POLICIES.get(kind, kind)
    return f"{name}, temperature {temperature}" if temperature else name


def z_score(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Difference of two mean returns in its standard errors; not a number where an error is unknown."""
    difference = one["mean_return"] - other["mean_return"]
    error = math.hypot(_number(one["stderr"]), _number(other["stderr"]))
    if error == 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / error


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def read_times(run: Path) -> dict[str, dict[str, float]]:
    """`cpu_seconds` and `wall_seconds` of the stages that have been timed, over all starts of the run, in order."""
    folder = Path(run)
    kept = read_json(folder / "timing.json") if (folder / "timing.json").exists() else {}
    times: dict[str, dict[str, float]] = {}
    for stage in (*STAGES, *(name for name in kept if name not in STAGES)):
        record = finished(folder, stage) or {}
        record = record if "cpu_seconds" in record else kept.get(stage, {})
        if "cpu_seconds" in record:
            times[stage] = {name: float(record[name]) for name in ("cpu_seconds", "wall_seconds")}
    return times


def finished(run: Path, stage: str) -> dict[str, Any] | None:
    """What a complete stage reported; None where it isn't complete."""
    path = Path(run) / "finished" / f"{stage}.json"
    return read_json(path) if path.exists() else None
