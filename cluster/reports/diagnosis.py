"""`dreamer4 diagnose`: which part of a run is the ceiling, as numbers, as a sentence, and as a page with pictures."""

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.diagnosis import Diagnosis
from actors.inspector import GRID_WORLDS
from actors.lens import Lens
from actors.replay import Replay
from actors.starts import new_starts
from actors.windows import Windows
from cluster.models import RunData, load_agent, load_policy, load_tokenizer, load_value
from cluster.reports import strips
from cluster.reports.page import page, paragraph, pictures, section, table
from cluster.reports.results import label, read_evaluations
from cluster.run import Run
from cluster.telemetry import read_metrics
from cluster.variants import IMITATIONS, VARIANTS, trained_by
from dreamer4.data.clips import ClipSampler
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.errors import RunError
from dreamer4.files import write_atomic, write_json

# What a part has to reach before the next one can be blamed: name, where it is in the record, and the least value.
DEMANDS = (
    ("the tokenizer keeps the agent's cell and direction", ("tokenizer", "pose"), 0.98),
    ("the tokenizer keeps the items", ("tokenizer", "items"), 0.98),
    ("the tokenizer keeps the agent where frames are rare", ("distinct", "tokenizer", "pose"), 0.95),
    ("the world model moves the agent right one step ahead", ("recorded", "1", "pose"), 0.95),
    ("the world model moves the agent right where frames are rare", ("distinct", "recorded", "1", "pose"), 0.95),
    ("the world model moves the agent right sixteen steps ahead", ("recorded", "16", "pose"), 0.8),
    (
        "the world model knows where random actions lead where frames are rare",
        ("distinct", "random", "1", "pose"),
        0.95,
    ),
    ("items persist for sixteen steps", ("recorded", "16", "kinds"), 0.95),
    ("the world model moves the agent right after one action of the policy", ("dynamics", "1", "pose"), 0.95),
    ("the world model moves the agent right after sixteen actions of the policy", ("dynamics", "16", "pose"), 0.8),
    ("items are as they should after sixteen actions of the policy", ("dynamics", "16", "items"), 0.95),
    ("rewards are imagined where they are really given, and nowhere else", ("first_reward", "same"), 0.8),
)
STEPS = 16  # that are dreamt at least, whatever the run's horizon
LEARNING = {  # metrics of stage 4 and their names
    "imagined_return": "imagined return",
    "ended": "dreams that end",
    "entropy": "entropy",
    "kl": "KL to the clone",
    "advantage_positive": "advantages from 0 on",
    "value": "value loss",
    "staleness": "staleness",
}
SHOWN_SHARES = (("agent", "pose"), ("items", "items"), ("kinds of items", "kinds"))


def diagnose(run: Run, windows: int) -> dict[str, Any]:
    """Measures a run up to its last finished policy, and returns the numbers.

    They are in `diagnosis/diagnosis.json` as well, and with pictures in `diagnosis/diagnosis.html`.

    Raises:
        RunError: the run's environment is no grid world.
    """
    config = run.config
    if not config.env.startswith(GRID_WORLDS):
        raise RunError(f"only grid worlds can be diagnosed, whose tiles can be read from pixels, not '{config.env}'")
    data, agent = RunData(run), load_agent(run)
    clips = ClipSampler(data.dataset, ~data.training_E, data.latents(), config.seed, "diagnosis")
    imagination = replace(config.imagination, horizon=max(STEPS, config.imagination.horizon))
    lens = Lens(load_tokenizer(run), agent.dynamics, agent.heads, clips, config.shortcut, imagination, config.seed)
    names = [name for name in ("bc", *_heads_of_the_world_model(run))]
    played = {name: record for name, record in read_evaluations(run.path).items() if name in names}
    found = Diagnosis(
        lens,
        Windows(data.dataset, ~data.training_E, config.imagination.context, config.seed),
        Replay(data.dataset, config.env, config.seed),
        {name: load_policy(run, name) for name in names},
        config.policy.discount,
        {name: record["mean_return"] for name, record in played.items()},
        {"pmpo": load_value(run)} if "pmpo" in names else {},
    ).measure(windows)
    found["new_starts"] = _new_starts(data.dataset, config.env, played)
    found["learning"] = _learning(read_metrics(run.metrics_path, "policy"))
    write_atomic(run.path / "diagnosis" / "diagnosis.html", _page(run, found).encode())
    numbers = _numbers(found)
    write_json(run.path / "diagnosis" / "diagnosis.json", numbers)
    return numbers


def _new_starts(dataset: EpisodeDataset, env: str, played: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Success of the policies that were played, in those episodes that began as no recording did."""
    found = {}
    seeds = sorted({seed for record in played.values() for seed in record["seeds"]})
    new = dict(zip(seeds, new_starts(dataset, env, seeds), strict=True))
    for name, record in played.items():
        new_N = np.array([new[seed] for seed in record["seeds"]], bool)
        if new_N.any():
            found[name] = {"n": int(new_N.sum()), "success": float(np.mean(np.array(record["successes"])[new_N]))}
    return found


def _learning(updates: list[dict[str, Any]], parts: int = 8) -> list[dict[str, float]]:
    """Means over stretches of stage 4, of what tells how it went."""
    stretches = [stretch for stretch in np.array_split(np.array(updates, object), parts) if len(stretch)]
    return [
        {"update": stretch[-1]["step"] + 1, **{key: _mean(row.get(key) for row in stretch) for key in LEARNING}}
        for stretch in stretches
    ]


def _mean(values: Iterable[float | None]) -> float:
    """Not a number where none is known: what was not finite is null in the metrics."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def _heads_of_the_world_model(run: Run) -> list[str]:
    """Trained policies that read the agent's features, so that imagination can ask them."""
    frozen = [name for name, imitation in IMITATIONS.items() if not imitation.scratch]
    names = ("pmpo", *frozen, *(name for name in VARIANTS if name != "policy"), *run.config.iql_policies)
    return [name for name in names if run.finished(str(trained_by(name))) is not None]


def verdict(found: dict[str, Any]) -> str:
    """The first part that does not reach what is demanded of it, by the best policy's dreams."""
    policies, unknown = found["policies"], []
    best = policies["pmpo" if "pmpo" in policies else "bc"]
    for name, place, least in DEMANDS:
        value: Any = found if place[0] in found else best
        for key in place:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None or not math.isfinite(value):
            unknown.append(name)
        elif value < least:
            return f"The ceiling is here: {name} in {value:.3f}, and at least {least} is demanded."
    rest = f" There was nothing to measure of: {'; '.join(unknown)}." if unknown else ""
    return f"No part falls short of what is demanded of it.{rest}"


def _numbers(found: dict[str, Any]) -> dict[str, Any]:
    """Without pictures; what is not a number becomes null, as JSON has none."""
    policies = {name: {k: v for k, v in one.items() if k != "frames"} for name, one in found["policies"].items()}
    text = json.dumps({"verdict": verdict(found), **found, "policies": policies})
    return json.loads(text, parse_constant=lambda _: None)


def _page(run: Run, found: dict[str, Any]) -> str:
    distinct = found["distinct"]
    parts = [paragraph(verdict(found), "lead")]
    kept = [
        [name, *(f"{of[key]:.3f}" for of in (found["tokenizer"], distinct["tokenizer"]))]
        for name, key in (("agent", "pose"), ("items", "items"), ("all", "frame"))
    ]
    about = paragraph(
        "Share of real frames that still show it: of all frames, and of frames no two of which are equal."
    )
    parts.append(section("Tokenizer", about, table(["", "all", "distinct"], kept)))
    parts.append(
        section(
            "World model, open loop",
            paragraph("Contexts of validation episodes continued by the recorded actions. Shares of windows."),
            _steps(found["recorded"]),
            paragraph("The same from contexts that end at distinct frames: what is rare counts like what is frequent."),
            _steps(distinct["recorded"]),
            paragraph("One random action there, whether it was ever recorded or not."),
            _steps(distinct["random"]),
        )
    )
    for name, one in found["policies"].items():
        shown = strips.continuations(one["frames"])
        parts.append(
            section(
                f"{label(name)}: imagined, and really played with the same actions",
                paragraph("After so many steps, or, of episodes that ended before, in the last frame before the end."),
                _steps(one["dynamics"]),
                table(["", "real", "imagined"], _heads(one)),
                pictures([shown]),
            )
        )
    if found["learning"]:
        parts.append(section("How stage 4 went", paragraph(_stage4(run)), _progress(found["learning"])))
    ranking = found["ranking"]
    parts.append(
        section(
            "Does imagination rank the policies as reality does?",
            paragraph(
                f"Rank correlation over {ranking['policies']} policies: {ranking['same_moments']:.2f} with the same "
                f"actions from the same moments, {ranking['whole_episodes']:.2f} with whole real episodes."
            ),
        )
    )
    if found["new_starts"]:
        rows = [[label(name), str(of["n"]), f"{of['success']:.3f}"] for name, of in found["new_starts"].items()]
        about = paragraph("Real episodes whose first frame is no recording's.")
        parts.append(section("Where nobody has started before", about, table(["", "episodes", "success"], rows)))
    return page(f"Diagnosis of {run.path.name}: {run.config.env}", parts)


def _steps(found: dict[str, dict[str, float]]) -> str:
    """Shares of windows by steps ahead, as a table."""
    names = ("pose", "copy_pose", "items", "copy_items", "kinds", "frame")
    rows = [[step, str(at["n"]), *(f"{at[name]:.3f}" for name in names)] for step, at in found.items()]
    repeated = "last frame repeated"
    head = ["steps ahead", "windows", "agent", repeated, "items", repeated, "kinds of items", "all tiles"]
    return table(head, rows)


def _stage4(run: Run) -> str:
    imagination, policy = run.config.imagination, run.config.policy
    return (
        f"Rollouts of {imagination.horizon} steps from contexts of {imagination.context} frames, "
        f"{policy.batch * policy.rollouts_per_step} per update, at most {policy.max_staleness} updates old; KL weight "
        f"{policy.beta:g}, discount {policy.discount:g}, lambda {policy.lam:g}. Means since the row above."
    )


def _progress(learning: list[dict[str, float]]) -> str:
    rows = [[str(row["update"]), *(f"{row[key]:.3f}" for key in LEARNING)] for row in learning]
    return table(["update", *LEARNING.values()], rows)


def _heads(one: dict[str, Any]) -> list[list[str]]:
    reward, goes_on, returns, first = one["reward"], one["continues"], one["returns"], one["first_reward"]
    arrival = one["arrival"]
    real, imagined = returns["real"], returns["imagined"]
    rows = [
        ["reward where one is paid", f"{reward['real_when_paid']:.3f}", f"{reward['imagined_when_paid']:.3f}"],
        ["reward where one is taken", f"{reward['real_when_taken']:.3f}", f"{reward['imagined_when_taken']:.3f}"],
        ["reward elsewhere", "0.000", f"{reward['imagined_otherwise']:.3f}"],
        ["going on after the end", "0.000", f"{goes_on['terminal']:.3f}"],
        ["going on elsewhere", "1.000", f"{goes_on['other']:.3f}"],
        [f"agent right in the frame of the end ({arrival['n']})", "", f"{arrival['pose']:.3f}"],
        ["discounted return", *(f"{x['mean']:.3f} ± {x['stderr']:.3f}" for x in (real, imagined))],
        ["correlation of the two", "", f"{returns['correlation']:.3f}"],
        [f"windows with a reward in one of the two: in both ({first['n']})", "", f"{first['same']:.3f}"],
        ["the same, at the same step", "", f"{first['same_step']:.3f}"],
        ["in reality alone", f"{first['missed']:.3f}", ""],
        ["in the dream alone", "", f"{first['false']:.3f}"],
    ]
    if "values" in one:
        values = one["values"]
        expected, dreamt = (
            f"{values[name]['mean']:.3f} ± {values[name]['stderr']:.3f}" for name in ("expected", "dreamt")
        )
        correlations = (f"{values[f'correlation_{name}']:.3f}" for name in ("real", "dreamt"))
        rows += [
            ["value expected at the context", "", expected],
            ["imagined return, with the value at its end", "", dreamt],
            ["correlation of expected values with returns", *correlations],
        ]
    return rows


def print_diagnosis(path: Path, found: dict[str, Any]) -> None:
    """The sentence, the shares of the headline, and where the page is."""
    print(found["verdict"])
    measured = {"recorded actions": found["recorded"], "the same, distinct frames": found["distinct"]["recorded"]}
    measured["random action, distinct frames"] = found["distinct"]["random"]
    measured |= {label(name): one["dynamics"] for name, one in found["policies"].items()}
    for name, by_step in measured.items():
        for step, at in by_step.items():
            shown = "  ".join(f"{what} {at[key]:.3f}" for what, key in SHOWN_SHARES)
            print(f"{name:30} {step:>3} steps  {shown}")
    print(path / "diagnosis" / "diagnosis.html")
