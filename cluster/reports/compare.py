"""Several runs side by side, as Markdown: what `docs/results.md` shows of the seeds."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cluster.config import IMITATION
from cluster.reports.results import STAGES, finished, in_order, is_iql, label, read_evaluations, read_times, z_score
from dreamer4.errors import RunError
from dreamer4.files import read_json
from dreamer4.metrics import mean_stderr

MISSING = "–"
FEWEST = 3  # runs whose standard error says something: that of two is luck
FAMILIES: dict[str, Callable[[str], bool]] = {  # each run's best of them is compared as well
    "imitation": lambda policy: policy in ("bc", *IMITATION),
    "IQL": is_iql,
}


def compare(paths: Iterable[str | Path]) -> str:
    """Tables of returns, of differences to BC and of PMPO to all others, of the world models, and of CPU seconds.

    Raises:
        RunError: a path holds no run.
    """
    runs = [Path(path) for path in paths]
    configs = [_config(run) for run in runs]
    names = _names(runs, configs)
    evaluations = [read_evaluations(run) for run in runs]
    return "\n".join(
        [
            *_returns(names, evaluations),
            "",
            *_differences(names, evaluations),
            "",
            *_advantages(evaluations),
            "",
            *_new_starts(names, runs),
            *_world_models(names, runs),
            "",
            *_costs(names, runs),
            "",
        ]
    )


def _config(run: Path) -> dict[str, Any]:
    if not (run / "config.json").is_file():
        raise RunError(f"there is no run in '{run}': give run directories")
    return read_json(run / "config.json")


def _names(runs: list[Path], configs: list[dict[str, Any]]) -> list[str]:
    """Seeds where these tell the runs apart, otherwise the directories' names, or as they were given."""
    seeds = [f"seed {config.get('seed', 0)}" for config in configs]
    folders, given = ([run.name for run in runs], [str(run) for run in runs])
    return next((names for names in (seeds, folders) if len(set(names)) == len(runs)), given)


def _returns(names: list[str], evaluations: list[dict[str, dict[str, Any]]]) -> list[str]:
    policies = in_order(policy for one in evaluations for policy in one)
    if not policies:
        return ["No policy has been evaluated yet."]
    rows = []
    for policy in policies:
        records = [one.get(policy) for one in evaluations]
        means = [record["mean_return"] for record in records if record]
        wins = [record["success"] for record in records if record]
        total = f"{_with_error(*mean_stderr(means))} ({100 * sum(wins) / len(wins):.1f} %)"
        total += f" of {len(means)}" if len(means) < len(records) else ""
        rows.append([label(policy), *(_cell(record) for record in records), total])
    episodes = sorted({record["episodes"] for one in evaluations for record in one.values()})
    counted = " to ".join(dict.fromkeys([str(episodes[0]), str(episodes[-1])]))
    return [
        f"Mean return ± standard error over {counted} episodes (successful episodes). "
        "Last column: mean over the runs ± standard error over them; of how many, where it is not all.",
        "",
        *markdown(["policy", *names, "mean over runs"], rows),
    ]


def _differences(names: list[str], evaluations: list[dict[str, dict[str, Any]]]) -> list[str]:
    rows = []
    for policy in in_order(policy for one in evaluations for policy in one):
        pairs = [(one.get(policy), one.get("bc")) for one in evaluations]
        if policy in ("random", "demonstrator", "bc") or not any(mine and base for mine, base in pairs):
            continue
        rows.append([f"{label(policy)} − BC", *(_difference(mine, base) for mine, base in pairs)])
    if not rows:
        return ["No policy can be compared with BC yet."]
    return [
        "Differences of mean returns, and z: the difference in standard errors, which are over episodes.",
        "",
        *markdown(["difference", *names], rows),
    ]


def _advantages(evaluations: list[dict[str, dict[str, Any]]]) -> list[str]:
    """PMPO against everything else, run by run: what a claim over training seeds rests on."""
    trained = [one for one in evaluations if "pmpo" in one]
    rivals = {label(policy): [policy] for policy in in_order(policy for one in trained for policy in one)}
    rivals.pop(label("pmpo"), None)
    for family, members in FAMILIES.items():
        there = [policy for policy in in_order(policy for one in trained for policy in one) if members(policy)]
        if len(there) > 1:
            rivals[f"each run's best {family}"] = there
    rows = []
    for name, policies in rivals.items():
        gains, wins = (_gains(trained, policies, quantity) for quantity in ("mean_return", "success"))
        mean, error = mean_stderr(gains)
        errors = f"{mean / error:.1f}" if len(gains) >= FEWEST and error > 0 else MISSING
        won = f"{100 * sum(wins) / len(wins):+.1f}"
        cells = [_with_error(mean, error), errors, won, str(sum(gain > 0 for gain in gains))]
        rows.append([f"PMPO − {name}", *cells, str(len(gains))])
    if not rows:
        return ["PMPO has not been evaluated yet."]
    head = ["difference", "mean return ± standard error over the runs", "in standard errors", "success, points"]
    return [
        "PMPO against the others: the difference within every run, its mean over the runs, and its standard error.",
        "",
        *markdown([*head, "runs in favour", "runs"], rows),
    ]


def _gains(evaluations: list[dict[str, dict[str, Any]]], policies: list[str], quantity: str) -> list[float]:
    """By how much PMPO is ahead of the best of some policies, in every run where one of them was played.

    The best is chosen by what is compared, as it really turned out: a choice that favours the rivals.
    """
    rivals = [[one[policy][quantity] for policy in policies if policy in one] for one in evaluations]
    return [one["pmpo"][quantity] - max(of) for one, of in zip(evaluations, rivals, strict=True) if of]


def _new_starts(names: list[str], runs: list[Path]) -> list[str]:
    """Lines and an empty one, or nothing where `dreamer4 diagnose` hasn't looked for such episodes."""
    diagnosed = [_read(run / "diagnosis" / "diagnosis.json") for run in runs]
    found = [one.get("new_starts", {}) for one in diagnosed]
    rows = [
        [label(policy), *(_share(one.get(policy)) for one in found)]
        for policy in in_order(policy for one in found for policy in one)
    ]
    about = "Successes in those real episodes whose first frame is no recording's (episodes)."
    return [about, "", *markdown(["policy", *names], rows), ""] if rows else []


def _share(record: dict[str, Any] | None) -> str:
    return MISSING if record is None else f"{100 * record['success']:.1f} % ({record['n']})"


def _world_models(names: list[str], runs: list[Path]) -> list[str]:
    found = [_read(run / "inspection" / "inspection.json") for run in runs]
    diagnosed = [_read(run / "diagnosis" / "diagnosis.json") for run in runs]
    rows = {
        "reconstruction": [_number(one, ".1f", "reconstructions", "psnr", unit=" dB") for one in found],
        "agent's cell after one step": [_number(one, ".3f", "agent_cell", "one_step", "model") for one in found],
        "the same, last frame repeated": [_number(one, ".3f", "agent_cell", "one_step", "copy") for one in found],
        "action-shuffle ratio, one step": [_number(one, ".2f", "action_shuffle", "one_step", "ratio") for one in found],
    }
    for what, key in (("agent", "pose"), ("items", "items"), ("kinds of items", "kinds")):
        for step in sorted({int(step) for one in diagnosed for step in one.get("recorded", {})}):
            name = f"{what} right after {step} recorded action{'s' * (step > 1)}"
            rows[name] = [_number(one, ".3f", "recorded", str(step), key) for one in diagnosed]
    for kind in ("recorded", "random"):
        name = f"agent right after 1 {kind} action, distinct frames"
        rows[name] = [_number(one, ".3f", "distinct", kind, "1", "pose") for one in diagnosed]
    rows["rank correlation of imagined and real returns"] = [
        _number(one, ".2f", "ranking", "whole_episodes") for one in diagnosed
    ]
    rows = {name: cells for name, cells in rows.items() if set(cells) != {MISSING}}
    if not rows:
        return ["No world model has been inspected yet."]
    lines = [[name, *cells] for name, cells in rows.items()]
    return ["World models, on validation episodes.", "", *markdown(["measurement", *names], lines)]


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _number(found: dict[str, Any], form: str, *keys: str, unit: str = "") -> str:
    """A number deep in nested dicts, or a dash where it was not measured."""
    value: Any = found
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return MISSING if value is None else f"{value:{form}}{unit}"


def _costs(names: list[str], runs: list[Path]) -> list[str]:
    times = [read_times(run) for run in runs]
    stages = dict.fromkeys([*STAGES, *(stage for one in times for stage in one)])
    rows = []
    for stage in stages:
        cells = []
        for run, one in zip(runs, times, strict=True):
            unfinished = finished(run, stage) is None
            cells.append(f"{one[stage]['cpu_seconds']:.0f}{' (unfinished)' * unfinished}" if stage in one else MISSING)
        if any(cell != MISSING for cell in cells):
            rows.append([stage, *cells])
    if not rows:
        return ["No stage has been timed yet."]
    sums = [sum(time["cpu_seconds"] for time in one.values()) for one in times]
    rows.append(["all", *(f"{total:.0f}" for total in sums)])
    return ["CPU seconds per stage.", "", *markdown(["stage", *names], rows)]


def _cell(record: dict[str, Any] | None) -> str:
    if record is None:
        return MISSING
    return f"{_with_error(record['mean_return'], record['stderr'])} ({100 * record['success']:.1f} %)"


def _difference(mine: dict[str, Any] | None, base: dict[str, Any] | None) -> str:
    if mine is None or base is None:
        return MISSING
    return f"{mine['mean_return'] - base['mean_return']:+.3f}, z {z_score(mine, base):.1f}"


def _with_error(mean: float, stderr: float | None) -> str:
    known = stderr is not None and math.isfinite(stderr)
    return f"{mean:.3f} ± {stderr:.3f}" if known else f"{mean:.3f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; the first column is text, the others are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]
