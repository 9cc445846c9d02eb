"""A run's models for others: weights as safetensors, configuration and evaluations as JSON, and a card with results."""

import copy
import json
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from cluster.config import CONTROLS
from cluster.models import new_dynamics, new_heads, new_tokenizer
from cluster.paths import LISTS, SETTINGS
from cluster.reports.results import label, read_evaluations, read_times
from cluster.run import Run, read_config
from cluster.settings import to_json
from dreamer4.checkpoint import load_tensors
from dreamer4.data.publish import CARD, Files, front_matter, receive, table
from dreamer4.errors import CheckpointError, RunError
from dreamer4.files import read_json, write_json

MODELS = ("tokenizer", "dynamics", "agent", "policy", *CONTROLS)
WEIGHTS, ABOUT = "weights.safetensors", "model.json"


def run_files(run: Run, license: str) -> Files:
    """What is published of a run: no optimizer state, no recordings.

    Raises:
        CheckpointError: a checkpoint is damaged.
        RunError: no model has been trained yet.
    """
    files: dict[str, Path | bytes] = {"config.json": _json(_public(to_json(run.config)))}
    stages = [stage for stage in MODELS if run.checkpoints(stage).latest() is not None]
    if not stages:
        raise RunError(f"run '{run.path}' has no trained model yet: train one with `dreamer4 train`")
    for stage in stages:
        saved = run.checkpoints(stage).load()
        files[f"{stage}/{WEIGHTS}"] = run.checkpoints(stage).weights_file(saved.step)
        files[f"{stage}/{ABOUT}"] = _json({"step": saved.step, "config": _public(saved.config)})
    for policy, record in read_evaluations(run.path).items():
        files[f"evaluation/{policy}.json"] = _json(record)
    return {CARD: card(run, stages, license).encode(), **files}


def _public(config: dict[str, Any]) -> dict[str, Any]:
    """Settings without places of the publisher's, which say who he is, or may hold a key.

    Of recordings the last part of the name is left; of the storage, which others would write to, nothing.
    """
    config = copy.deepcopy(config)
    for key in (*SETTINGS, *LISTS):
        section, name = key.split(".")
        if place := config.get(section, {}).get(name):
            config[section][name] = _last_part(place) if key in SETTINGS else [_last_part(one) for one in place]
    if "resources" in config:
        config["resources"]["storage"] = None
    return config


def _last_part(place: str) -> str:
    return PurePosixPath(place.partition("?")[0]).name


def receive_run(folder: Path, path: Path) -> list[str]:
    """A run directory from a published folder; returns the stages whose models it holds now.

    Raises:
        DataError: the folder is unsafe or was changed.
        CheckpointError: a file of weights is not safetensors.
        RunError: the configuration is not one of this version, or the directory can't be written.
    """
    temporary = path.with_name(f".{path.name}.pulled")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        receive(folder, temporary)
        config, stages = read_config(temporary), [stage for stage in MODELS if (temporary / stage).is_dir()]
        models = {stage: _model(temporary / stage) for stage in stages}
        for stage, (step, weights, described) in models.items():
            Run(path, config).checkpoints(stage).save(step, weights, {}, described)
        for record in (temporary / "evaluation").glob("*.json"):
            write_json(path / "evaluation" / record.name, read_json(record))
        write_json(path / "config.json", to_json(config))
        return stages
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _model(folder: Path) -> tuple[int, dict[str, Any], dict[str, Any]]:
    about = read_json(folder / ABOUT)
    try:
        step, described = about["step"], about["config"]
        if not isinstance(step, int) or not 0 <= step < 10**12 or not isinstance(described, dict):
            raise ValueError("step or config can't be used")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"'{folder / ABOUT}' is not the record of a model: {error!r}") from error
    return step, load_tensors(folder / WEIGHTS), described


def card(run: Run, stages: list[str], license: str) -> str:
    """The model card, from what the report shows."""
    config, evaluations = run.config, read_evaluations(run.path)
    head: dict[str, Any] = {
        "license": license,
        "library_name": "dreamer4-ray",
        "pipeline_tag": "reinforcement-learning",
        "tags": ["dreamer4", "world-model", "reinforcement-learning", config.env],
    }
    if results := [_result(config.env, name, record) for name, record in evaluations.items() if name in ("pmpo", "bc")]:
        head["model-index"] = [{"name": run.path.name, "results": results}]
    rows = [
        [label(name), str(record["episodes"]), f"{record['mean_return']:z.3f}", _error(record), _percent(record)]
        for name, record in evaluations.items()
    ]
    sizes = {"tokenizer": new_tokenizer(run), "dynamics": new_dynamics(run), "agent": new_heads(run)}
    models = []
    for stage in stages:
        known = f"{sum(p.numel() for p in sizes[stage].parameters()):,}" if stage in sizes else ""
        models.append(
            [stage, str(run.checkpoints(stage).latest()), f"{known} in its heads" if stage == "agent" else known]
        )
    hours = sum(one["cpu_seconds"] for one in read_times(run.path).values()) / 3600
    evaluated = (
        table(["policy", "episodes", "mean return", "standard error", "success"], rows) if rows else ["None yet."]
    )
    return "\n".join(
        [
            front_matter(head),
            f"# Dreamer 4 world model and policies for {config.env}",
            "",
            "Learned from recordings, then improved in its own imagination (arXiv 2509.24527).",
            "",
            "## Policies in the real environment",
            "",
            *evaluated,
            "",
            "## Models",
            "",
            *table(["stage", "updates", "parameters"], models),
            "",
            f"Seed {config.seed}, {hours:.2f} hours of CPU. All settings are in `config.json`, but no places.",
            "",
            "```",
            "dreamer4 pull --from SOURCE --run runs/pulled",
            "dreamer4 evaluate --run runs/pulled --policy pmpo",
            "```",
            "",
        ]
    )


def _result(env: str, policy: str, record: dict[str, Any]) -> dict[str, Any]:
    return {
        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
        "dataset": {"name": env, "type": env},
        "metrics": [
            {"type": "mean_return", "name": f"mean return of {label(policy)}", "value": record["mean_return"]},
            {"type": "success", "name": f"success of {label(policy)}", "value": record["success"]},
        ],
    }


def _error(record: dict[str, Any]) -> str:
    return "–" if record["stderr"] is None else f"{record['stderr']:.3f}"


def _percent(record: dict[str, Any]) -> str:
    return "–" if record["success"] is None else f"{100 * record['success']:.1f} %"


def _json(record: Any) -> bytes:
    return (json.dumps(record, indent=2) + "\n").encode()
