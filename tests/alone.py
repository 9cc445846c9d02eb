"""Every stage of a run in this process, without Ray: a few updates each, by the classes that Ray's processes hold."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from far_device import NAME, FarDevice
from trained import record

from cluster import models
from cluster.config import configure
from cluster.evaluation import EvaluatorActor
from cluster.policy.rollout_rank import RolloutRank
from cluster.policy.trainer import PolicyTrainer
from cluster.presets import smoke
from cluster.pretrain import StageTrainer
from cluster.registry.registry import open_registry
from cluster.reports.diagnosis import diagnose
from cluster.reports.inspection import InspectorActor
from cluster.run import Run
from cluster.stages import LatentWriter, finish_encode, shards_of
from cluster.utilisation import TIMED
from cluster.variants import VARIANTS

SMALL = (
    'controls=["scratch_bc","filtered_bc","iql","shuffled"]',
    *(f"{stage}_training.batch=4" for stage in ("tokenizer", "dynamics", "agent", "filtered_bc", "scratch_bc", "iql")),
    "policy.batch=4",
    *("tokenizer.encoder_depth=1", "tokenizer.decoder_depth=1", "tokenizer.time_every=1", "dynamics.depth=2"),
    *("imagination.horizon=3", "imagination.context=3", "imagination.sampling_steps=1"),
    "evaluation.windows=4",
)


def play(path: Path, settings: Sequence[str]) -> dict[str, Any]:
    """A run from its recordings to its diagnosis; returns the numbers of every stage."""
    found: dict[str, Any] = {}
    with Run.open(path, configure(smoke(), [*SMALL, *settings])) as run:
        record(run)
        found["tokenizer"] = train(run, "tokenizer")
        encode(run)
        for stage in ("dynamics", "agent", "scratch_bc", "filtered_bc", "iql"):
            found[stage] = train(run, stage)
        found["device"] = next(models.load_agent(run).parameters()).device.type
        for stage in ("policy", "shuffled"):
            found[stage] = improve(run, stage)
        for policy in ("bc", "pmpo", "iql", "scratch_bc"):
            result, _ = EvaluatorActor(str(path), policy).play(0, 2)
            found[f"{policy} evaluated"] = vars(result)
        inspection, _ = InspectorActor(str(path)).measure()
        found["inspection"] = numbers(inspection)
        found["diagnosis"] = numbers(diagnose(run, 4))
    return found


def play_far(path: Path, settings: Sequence[str]) -> dict[str, Any]:
    """The same with all models on the far device."""
    near = models.choose_device
    for module in list(sys.modules.values()):
        if getattr(module, "choose_device", None) is near:
            module.choose_device = lambda run: torch.device(NAME, 0)  # type: ignore[attr-defined]
    with FarDevice():
        return play(path, settings)


def train(run: Run, stage: str) -> list[dict[str, float]]:
    """Two updates, a checkpoint, and one more by another trainer that goes on from it."""
    first = StageTrainer(str(run.path), stage)
    rows = [*first.portion(1), *first.portion(1)]
    first.save()
    second = StageTrainer(str(run.path), stage)
    assert second.restore() == 2
    assert {p.device for p in second.learner.module.parameters()} == {models.choose_device(run)}
    rows += second.portion(1)
    run.finish(stage, {})
    return [untimed(row) for row in rows]


def encode(run: Run) -> None:
    writer = LatentWriter(str(run.path))
    for index in range(len(shards_of(models.RunData(run)))):
        writer.make(index)
    finish_encode(run, {})


def improve(run: Run, stage: str) -> list[dict[str, float]]:
    """Two rollouts, and two updates by them, the second by a learner that goes on from a checkpoint."""
    variant = next(one for one in VARIANTS.values() if one.stage == stage)
    rank = RolloutRank(str(run.path), variant, 0, 1)
    rank.load(None)
    registry, rows = open_registry(run.path), []
    lease = registry.acquire("test", 60)
    for index in range(2):
        trainer = PolicyTrainer(str(run.path), variant)
        assert trainer.position(lease).updates == index
        weights = trainer.weights(index)
        _, rollout = rank.rollout(index, index, weights)
        assert rollout is not None
        told, _ = trainer.step(lease, index, True, rollout)
        rows.append(untimed(told.metrics))
    registry.release(lease)
    run.finish(stage, {})
    return rows


def untimed(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in TIMED}


def numbers(found: Any) -> Any:
    """Of what was measured: no pictures."""
    if isinstance(found, dict):
        return {key: numbers(value) for key, value in found.items()}
    return found if isinstance(found, int | float | str) else None
