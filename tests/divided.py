"""What the ranks of a divided world model run in the tests. A mesh of None stands for the undivided model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from factories import level_inputs, random_clip, tiny_dynamics, tiny_heads
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from actors.imagination import ImaginationWorker
from dreamer4.data.clips import ClipSampler
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.latents import LatentDataset
from dreamer4.dynamics import Dynamics
from dreamer4.imagination import ImaginationConfig, WorldStream, imagine
from dreamer4.rng import generator
from dreamer4.shortcut import ShortcutConfig
from learners import tensor_parallel
from learners.tensor_parallel import Cut, cuts, load_sharded_dynamics, shard_dynamics

SHORTCUT = ShortcutConfig(k_max=8, context_noise=0.125)
PAIR = {"width": 32, "depth": 8, "heads": 4, "kv_heads": 2}  # four time layers, two queries per key
FOUR = {**PAIR, "heads": 8, "kv_heads": 4}

Result = dict[str, Tensor]


def model(mesh: DeviceMesh | None, sizes: dict[str, Any], dtype: torch.dtype = torch.float32) -> Dynamics:
    dynamics = tiny_dynamics(**sizes)
    if dtype != torch.float32:  # otherwise `to` would still round the rotary angles
        dynamics.to(dtype)
    return dynamics if mesh is None else shard_dynamics(dynamics, mesh)


@torch.no_grad()
def run_pass(dynamics: Dynamics) -> Result:
    """Two rows of six frames, beyond the window."""
    inputs = level_inputs(dynamics, 2, 6)
    return vars(dynamics(**inputs, task_BT=torch.ones(2, 6, dtype=torch.long)))


def batch_pass(mesh: DeviceMesh | None, sizes: dict[str, Any], dtype: torch.dtype = torch.float32) -> Result:
    return run_pass(model(mesh, sizes, dtype))


@torch.no_grad()
def stream(mesh: DeviceMesh | None, dtype: torch.dtype = torch.float32) -> Result:
    """Thirteen frames through caches that hold three, in passes of several lengths."""
    dynamics, clip = model(mesh, PAIR, dtype), random_clip(2, 13)
    world, draw = WorldStream(dynamics, SHORTCUT, ImaginationConfig(), 2, clip.task_BT[:, -1]), generator("stream")
    noise = torch.randn(clip.latents_BTSD.shape, generator=draw)
    steps = zip(*(x.split([4, 1, 1, 1, 5, 1], 1) for x in (clip.latents_BTSD, clip.act_in_BTA, noise)), strict=True)
    features = [world.observe(z, act, torch.ones(act.shape[:2], dtype=torch.bool), eps) for z, act, eps in steps]
    everything = [*features, *world.cache.keys, *world.cache.values]
    assert all(type(x) is Tensor for x in everything), {type(x) for x in everything}
    keys, values = torch.stack(world.cache.keys), torch.stack(world.cache.values)
    return {"features_BTM": torch.cat(features, dim=1), "keys": keys, "values": values}


def dream(mesh: DeviceMesh | None, dtype: torch.dtype = torch.float32) -> Result:
    """Six imagined frames of sixteen rollouts, beyond the window, their actions sampled."""
    dynamics = model(mesh, PAIR, dtype)
    heads = tiny_heads(dynamics).to(dtype)
    config = ImaginationConfig(horizon=6, context=3)
    return vars(imagine(dynamics, heads, heads.policy, random_clip(16, 3), SHORTCUT, config, generator("dream")))


def rollouts(mesh: DeviceMesh | None, folder: Path) -> list[dict[str, np.ndarray]]:
    """As a rank of a worker group makes them, from recordings on disk."""
    dataset = EpisodeDataset.open(folder / "episodes")
    contexts = ClipSampler(dataset, None, LatentDataset.open(folder / "latents", dataset), 7, "contexts")
    dynamics = model(mesh, PAIR)
    heads = tiny_heads(dynamics)
    config = ImaginationConfig(horizon=4, context=3)
    worker = ImaginationWorker(dynamics, heads, heads.policy, contexts, SHORTCUT, config, 4, 0)
    return [vars(worker.rollout(index)) for index in (0, 5)]


def loaded_pass(mesh: DeviceMesh, file: Path) -> Result:
    """The same pass by shares that come straight from a file."""
    dynamics = load_sharded_dynamics(tiny_dynamics(**PAIR).config, file, mesh, "dynamics.")
    assert not any(p.requires_grad or p.is_meta for p in dynamics.parameters())
    assert held(dynamics) == held(model(mesh, PAIR))
    return run_pass(dynamics)


def held(dynamics: Dynamics) -> dict[str, tuple[int, int]]:
    """Numbers in every parameter of this rank, and bytes of the memory behind it."""
    local = {
        name.removesuffix(".weight"): value.to_local() if isinstance(value, DTensor) else value
        for name, value in dynamics.named_parameters()
    }
    return {name: (value.numel(), value.untyped_storage().nbytes()) for name, value in local.items()}


def holdings(mesh: DeviceMesh | None) -> dict[str, tuple[int, int]]:
    return held(model(mesh, PAIR))


@contextmanager
def fused_rows_cut_as_one() -> Iterator[None]:
    """The mistake that `Cut.parts` prevents."""
    tensor_parallel.cuts = lambda config: {n: Cut(cut.dim, (sum(cut.parts),)) for n, cut in cuts(config).items()}
    try:
        yield
    finally:
        tensor_parallel.cuts = cuts


def batch_pass_with_rows_cut_as_one(mesh: DeviceMesh) -> Result:
    with fused_rows_cut_as_one():
        return batch_pass(mesh, PAIR)


def differing_pass(mesh: DeviceMesh, compare: bool, differ: bool = True) -> Result:
    """A pass of ranks that hold one number of the registers differently."""
    dynamics = tiny_dynamics(**PAIR)
    if differ:
        dynamics.registers.data[0, 0] += mesh.get_local_rank()
    return run_pass(shard_dynamics(dynamics, mesh, compare))


def dream_for_ever(mesh: DeviceMesh) -> None:
    while True:
        dream(mesh)
