"""Run directories made by hand: files as the stages leave them, with numbers that tests know."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from actors.inspection import save_inspection
from cluster.presets import smoke
from cluster.run import Run
from cluster.settings import override
from dreamer4.files import write_json

STAGES = ("collect", "tokenizer", "encode", "dynamics", "agent", "policy", "filtered_bc", "inspect")
RETURNS = {  # policy: mean return, standard error, successes of 200 episodes
    "random": (-0.990, 0.010, 1),
    "demonstrator": (-0.450, 0.060, 58),
    "bc": (-0.413, 0.060, 62),
    "filtered_bc": (0.676, 0.040, 180),
    "pmpo": (0.787, 0.025, 189),
}
LOSSES = {
    "tokenizer": {"mse": 0.5, "gradient_norm": 1.0, "lr": 1e-3},
    "dynamics": {"shortcut": 0.25},
    "agent": {"shortcut": 0.2, "policy": 1.0, "reward": 3.0, "continue": 0.7},
    "filtered_bc": {"policy": 0.9},
    "policy": {"policy": -0.1, "value": 2.0, "kl": 0.1, "entropy": 0.5, "imagined_return": 0.1, "staleness": 1.0},
}


def empty_run(path: Path, seed: int = 0) -> Run:
    """A run that has just begun."""
    with Run.open(path, override(smoke(), [f"seed={seed}"])) as run:
        return run


def add_evaluation(run: Run, policy: str, mean: float, stderr: float | None, successes: int, of: int = 200) -> None:
    share = successes / of
    record = {"policy": policy, "episodes": of, "mean_return": mean, "stderr": stderr, "success": share}
    interval = {"success_low": max(0.0, share - 0.05), "success_high": min(1.0, share + 0.05)}
    write_json(run.path / "evaluation" / f"{policy}.json", {**record, **interval})


def add_metrics(run: Run, stage: str, steps: int = 20, **more: Any) -> None:
    with open(run.metrics_path, "a") as file:
        for step in range(steps):
            file.write(json.dumps({"stage": stage, "step": step, "time": 1e9 + step, **LOSSES[stage], **more}) + "\n")


def finish(run: Run, stage: str, cpu: float, wall: float) -> None:
    run.finish(stage, {"cpu_seconds": cpu, "wall_seconds": wall})


def inspection(steps: int = 4, cells: bool = True) -> dict[str, Any]:
    """As `actors.inspector` gives it."""
    frames = np.random.default_rng(0).integers(0, 256, (3, steps, 8, 8, 3), dtype=np.uint8)
    known = np.ones((3, steps), bool)
    known[2, 2:] = False
    n = np.arange(100, 100 - steps, -1)
    curve = np.linspace(0.8125, 0.25, steps)
    cell = {
        "n": n,
        "model": curve,
        "copy": curve - 0.125,
        "tokenizer": curve * 0 + 1,
        "real_balls": curve * 0 + 2,
        "imagined_balls": curve * 0 + 1.9,
        "moved_n": n // 2,
        "moved_model": curve - 0.2,
    }
    first = {name: value[0].item() for name, value in cell.items()}
    ratios = {"error": 0.2, "shuffled_error": 0.25, "ratio": 1.25, "ratio_changed": 1.5}
    returns = {
        "n": 100,
        "discount": 0.97,
        "horizon": 8,
        "recorded": {"mean": -0.038, "stderr": 0.05},
        "imagined": {
            "bc": {"mean": -0.157, "stderr": 0.048},
            "pmpo": {"mean": 0.118, "stderr": 0.037, "bootstrapped": 0.203, "value": 0.179},
        },
    }
    return {
        "reconstructions": {
            "n": 100,
            "psnr": 45.25,
            "mean_image_psnr": 21.5,
            "real": frames[:, 0],
            "reconstructed": frames[:, 1],
        },
        "horizon": {
            "n": n,
            **{f"{name}_psnr": 20 + curve for name in ("model", "copy", "mean_image", "tokenizer")},
            "last": frames[:, 0],
            "real": frames,
            "imagined": frames[::-1].copy(),
            "known": known,
        },
        "agent_cell": {"one_step": first, "horizon": cell} if cells else {},
        "action_shuffle": {"n": 100, "n_changed": 66, "one_step": ratios, "finest": {**ratios, "ratio": 1.75}},
        "rewards": {
            "calibration": {
                "true": np.array([-1.0, 0.0, 0.889]),
                "predicted": np.array([-0.986, -0.0001, 0.888]),
                "spread": np.array([0.056, 0.027, 0.009]),
                "n": np.array([64, 100, 36]),
            },
            "returns": returns,
            "continues": {"n_terminal": 100, "n_other": 101, "terminal": 0.0079, "other": 0.9956},
        },
    }


def whole_run(path: Path, seed: int = 0, shift: float = 0.0) -> Run:
    """A run that has done everything; `shift` is added to its mean returns."""
    run = empty_run(path, seed)
    for policy, (mean, stderr, successes) in RETURNS.items():
        add_evaluation(run, policy, mean + shift, stderr, successes)
    for stage in LOSSES:
        add_metrics(run, stage)
    for i, stage in enumerate(STAGES):
        finish(run, stage, cpu=10.0 * (i + 1), wall=7.0 * (i + 1))
    run.finish("evaluate", {"policies": list(RETURNS)})
    write_json(run.path / "timing.json", {"evaluate": {"cpu_seconds": 25.0, "wall_seconds": 30.0}})
    save_inspection(run.path / "inspection", inspection())
    return run
