"""Combinations of settings that can't work, each told with its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dreamer4.errors import ConfigError
from learners.parallel import check_batch

if TYPE_CHECKING:
    from cluster.config import RunConfig


def problems(config: RunConfig) -> Iterator[str]:
    """What is wrong between sections and in numbers; each section has checked itself."""
    yield from _sizes(config)
    yield from _counts(config)
    yield from _shares(config)
    yield from _trainers(config)


def _sizes(config: RunConfig) -> Iterator[str]:
    """Relations between settings."""
    tokenizer, dynamics, imagination = config.tokenizer, config.dynamics, config.imagination
    transformers = {
        "tokenizer": [lambda: tokenizer.transformer(tokenizer.encoder_depth)],
        "dynamics": [dynamics.transformer],
    }
    transformers["tokenizer"].append(lambda: tokenizer.transformer(tokenizer.decoder_depth))
    for name, builds in transformers.items():
        for build in builds:
            try:
                build()
            except ConfigError as error:
                yield f"{name}: {error}"
    if config.data.half_distinct and config.data.mixture:
        yield "data.half_distinct and data.mixture both say what tokenizer and dynamics learn from: use one of them"
    steps = imagination.sampling_steps
    if steps < 1 or steps & (steps - 1) or steps > dynamics.k_max:
        yield f"imagination.sampling_steps must be a power of two up to dynamics.k_max ({dynamics.k_max}), got {steps}"
    if imagination.context > dynamics.window:
        yield f"imagination.context ({imagination.context}) must fit into dynamics.window ({dynamics.window})"
    if config.shortcut.drafts and config.agent_training.context_share:
        yield (
            f"agent_training.context_share ({config.agent_training.context_share}) must be 0 with "
            "shortcut.drafts, where all frames are at the context's level once"
        )
    long_length = config.dynamics_training.long_length
    if long_length <= dynamics.window:
        yield (
            f"dynamics_training.long_length ({long_length}) must exceed dynamics.window ({dynamics.window}), "
            "so that the model doesn't take the start of its window for the start of an episode"
        )
    resources = config.resources
    least, most = resources.worker_bounds()
    if not 1 <= least <= resources.workers <= most:
        yield (
            f"resources.workers ({resources.workers}) must lie between resources.min_workers ({least}) and "
            f"resources.max_workers ({most}), and all be at least 1"
        )
    divided = {"heads": dynamics.heads, "kv_heads": dynamics.kv_heads, "hidden": dynamics.hidden}
    if resources.shards > 0 and any(size % resources.shards for size in divided.values()):
        listed = ", ".join(f"dynamics.{name} ({size})" for name, size in divided.items())
        yield f"resources.shards ({resources.shards}) must divide {listed}"
    if resources.shards > 1 and resources.worker_gpus % 1:
        yield (
            f"the {resources.shards} shards of a worker can't share a GPU, but resources.worker_gpus is "
            f"{resources.worker_gpus:g}: give each a whole one, or none"
        )
    if resources.scale_seconds <= 0 or resources.rollout_timeout <= 0:
        yield "resources.scale_seconds and resources.rollout_timeout are seconds, so greater than 0"
    if resources.device == "cuda" and not resources.trainer_gpus:
        yield "resources.device is 'cuda', but no trainer is given a GPU: set resources.trainer_gpus, such as 0.5"


def _counts(config: RunConfig) -> Iterator[str]:
    """Numbers that count something."""
    sections = {
        "data": ("frames", "shard_frames"),
        "tokenizer_training": ("steps", "batch", "length", "save_every"),
        "dynamics_training": ("steps", "batch", "length", "long_batch", "save_every"),
        "agent_training": ("steps", "batch", "length", "save_every"),
        "filtered_bc_training": ("steps", "batch", "length", "save_every"),
        "scratch_bc_training": ("steps", "batch", "length", "save_every"),
        "iql_training": ("steps", "batch", "length", "save_every"),
        "policy": ("steps", "batch", "save_every"),
        "evaluation": ("episodes", "parallel", "actors", "max_frames", "windows"),
        "resources": (
            "trainers",
            "workers",
            "shards",
            "trainer_threads",
            "worker_threads",
            "collectors",
            "object_store_mb",
        ),
    }
    for section, names in sections.items():
        for name in names:
            value = getattr(getattr(config, section), name)
            if value < 1:
                yield f"{section}.{name} must be at least 1, got {value}"


def _shares(config: RunConfig) -> Iterator[str]:
    """Numbers that are a part of 1."""
    sections = {
        "data.demonstrator": (
            config.data.demonstrator,
            ("careful_share", "careful_epsilon", "careless_epsilon", "lost_share"),
        ),
        "shortcut": (config.shortcut, ("context_share", "pure_noise", "bootstrap_rows")),
        "agent_training": (config.agent_training, ("image_share", "context_share")),
    }
    for key, (section, names) in sections.items():
        for name in names:
            value = getattr(section, name)
            if value is not None and not 0 <= value <= 1:
                yield f"{key}.{name} is a share of 1, got {value}"
    weights, wanted = config.data.weights, 1 + len(config.data.mixture)
    if weights and (len(weights) != wanted or min(weights) < 0 or not any(weights)):
        yield (
            f"data.weights are {wanted} numbers from 0 on here, one for the recordings and one for each dataset of "
            f"data.mixture, got {list(weights)}"
        )
    if not 0 < config.best_share <= 1:
        yield f"best_share is a share of the recordings, above 0 and at most 1, got {config.best_share}"
    if not 0 < config.data.validation < 1:
        yield f"data.validation must leave episodes on both sides, so between 0 and 1, got {config.data.validation}"
    if config.resources.trainer_gpus < 0 or config.resources.worker_gpus < 0:
        yield "resources.trainer_gpus and resources.worker_gpus can't be negative"
    if config.resources.peak_tflops is not None and config.resources.peak_tflops <= 0:
        yield f"resources.peak_tflops must be greater than 0, got {config.resources.peak_tflops}"
    if config.resources.node_price < 0:
        yield f"resources.node_price is a price per hour, so at least 0, got {config.resources.node_price}"


def _trainers(config: RunConfig) -> Iterator[str]:
    """What several trainers ask for."""
    resources = config.resources
    if resources.trainers < 1:
        return  # `_counts` has said so
    if resources.min_trainers is not None and not 1 <= resources.min_trainers <= resources.trainers:
        yield (
            f"resources.min_trainers ({resources.min_trainers}) must be from 1 to resources.trainers "
            f"({resources.trainers})"
        )
    if resources.trainers > 1 and resources.trainer_gpus % 1:
        yield (
            f"{resources.trainers} trainers can't share a GPU, but resources.trainer_gpus is "
            f"{resources.trainer_gpus:g}: give each a whole one, or none"
        )
    for stage in ("tokenizer", "dynamics", "agent", "filtered_bc", "scratch_bc", "iql"):
        section = f"{stage}_training"
        for name in ("batch", "long_batch") if stage == "dynamics" else ("batch",):
            batch = getattr(getattr(config, section), name)
            check_batch(f"{section}.{name}", batch, resources.trainers, config.parallel.accumulate)
