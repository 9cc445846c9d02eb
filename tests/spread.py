"""What the ranks of `ranks.Ranks` run for the tests of `learners.parallel`: updates of every learner of stages 1 to 3.

Everything is looked up by name, because another process runs it: a learner by its name in `LEARNERS`, a way to go wrong
by its name in `MISTAKES`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from factories import lively, tiny_dynamics, tiny_heads, tiny_tokenizer
from torch.distributed.device_mesh import DeviceMesh
from worlds import World

from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.latents import LatentDataset
from dreamer4.errors import DataError
from dreamer4.shortcut import ShortcutConfig
from learners.agent import AgentLearner, AgentTraining, FilteredBCLearner, ScratchBCLearner
from learners.dynamics import DynamicsLearner, DynamicsTraining
from learners.iql import IQLLearner, IQLModel, IQLTraining
from learners.learner import Learner
from learners.optim import OptimConfig
from learners.parallel import Parallel, ParallelConfig
from learners.parts import Part
from learners.tokenizer import TokenizerLearner, TokenizerTraining

OPTIM = OptimConfig(lr=1e-3, warmup_steps=2)
SHORTCUT = ShortcutConfig(k_max=8)
SOME_ROWS = replace(SHORTCUT, bootstrap_rows=0.3)
DYNAMICS = DynamicsTraining(
    steps=20, batch=8, length=3, long_length=6, long_batch=4, long_share=0.4, image_share=0.3, optim=OPTIM
)
PACKED = replace(DYNAMICS, packed=True)
DRAFTS = replace(SHORTCUT, drafts=True)
MUON = replace(DYNAMICS, optim=replace(OPTIM, muon_lr=2e-3))
AGENT = AgentTraining(steps=20, batch=8, length=4, optim=OPTIM)
TOKENIZER = TokenizerTraining(steps=20, batch=4, length=3, optim=OPTIM)
STEPS = 4  # long and short batches, and moments of the optimizer that matter
Result = dict[str, Any]


@cache
def open_world(folder: Path) -> World:
    """The world that `worlds.make_world` wrote to a folder; its recordings are on disk only."""
    dataset = EpisodeDataset.open(folder / "episodes")
    return World([], dataset, LatentDataset.open(folder / "latents", dataset))


def dynamics(
    world: World, shortcut: ShortcutConfig = SHORTCUT, training: DynamicsTraining = DYNAMICS, seed: int = 0
) -> Learner:
    return DynamicsLearner(tiny_dynamics(seed).train(), training, shortcut, world.clips(), 7)


def agent(
    world: World,
    relevant: str = "success",
    shortcut: ShortcutConfig = SHORTCUT,
    seed: int = 0,
    halved: bool = False,
) -> Learner:
    model = tiny_dynamics(seed).train()
    heads, training = tiny_heads(model, seed).train(), replace(AGENT, relevant=relevant)
    return AgentLearner(model, heads, training, shortcut, world.clips(), world.dataset.success_E, 7, halved)


def tokenizer(world: World, masked_loss_only: bool = False, seed: int = 0, latent_noise: float = 0.0) -> Learner:
    model = tiny_tokenizer(seed, masked_loss_only=masked_loss_only, latent_noise=latent_noise).train()
    return TokenizerLearner(model, TOKENIZER, world.clips(latents=False), 7)


def filtered_bc(world: World, seed: int = 0) -> Learner:
    model = tiny_dynamics(0)
    policy = tiny_heads(model, 1 + seed).policy.train()
    return FilteredBCLearner(model, policy, AGENT, SHORTCUT, world.clips(episodes=world.dataset.success_E), 7)


def scratch_bc(world: World, seed: int = 0) -> Learner:
    model = tiny_dynamics(seed).train()
    return ScratchBCLearner(model, tiny_heads(model, 1 + seed).policy.train(), AGENT, SHORTCUT, world.clips(), 7)


def iql(world: World, seed: int = 0) -> IQLLearner:
    training = IQLTraining(steps=20, batch=8, length=4, also=(0.03,), hidden=8, layers=1, optim=OPTIM)
    model = tiny_dynamics(0)
    policy = tiny_heads(model, 1 + seed).policy.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        heads = IQLModel(policy, model.config.feature_width, training)
    for mlp in (heads.value, *heads.q):
        lively(mlp)
    return IQLLearner(model, heads, training, 0.9, SHORTCUT, world.clips(), 7)


LEARNERS: dict[str, Callable[..., Learner]] = {
    "dynamics": dynamics,
    "dynamics, few bootstrapped rows": lambda world, **more: dynamics(world, SOME_ROWS, **more),
    "dynamics of one length": lambda world, **more: dynamics(world, training=replace(DYNAMICS, long_share=0.0), **more),
    "dynamics of packed rows": lambda world, **more: dynamics(world, training=PACKED, **more),
    "dynamics by drafts": lambda world, **more: dynamics(world, DRAFTS, **more),
    "dynamics by Muon": lambda world, **more: dynamics(world, training=MUON, **more),
    "agent": agent,
    "agent, few bootstrapped rows": lambda world, **more: agent(world, shortcut=SOME_ROWS, **more),
    "agent by drafts": lambda world, **more: agent(world, shortcut=DRAFTS, **more),
    "agent on all rows": lambda world, **more: agent(world, "all", **more),
    "agent on all rows, halved": lambda world, **more: agent(world, "all", halved=True, **more),
    "tokenizer": tokenizer,
    "tokenizer on masked patches": lambda world, **more: tokenizer(world, True, **more),
    "tokenizer of noisy latents": lambda world, **more: tokenizer(world, latent_noise=0.4, **more),
    "filtered_bc": filtered_bc,
    "scratch_bc": scratch_bc,
    "iql": iql,
}


def same_rows(learner: Learner) -> None:
    """Every rank takes the rows of rank 0."""
    learner.parallel.parts = lambda: [Part(0, learner.parallel.world)]


def own_denominators(learner: Learner) -> None:
    """Every rank takes the mean over its own frames, and the ranks' means count alike."""
    losses = learner.losses

    def own(index: int, part: Part) -> dict[str, torch.Tensor]:
        learner.counts = lambda *_: dict.fromkeys(("shortcut", "policy", "reward", "continue"), 1)
        return {name: loss / part.parts for name, loss in losses(index, part).items()}

    learner.losses = own


def own_gradients(learner: Learner) -> None:
    """Nobody adds the gradients up."""
    learner.parallel.sum_gradients = lambda parameters: None


def poisoned(learner: Learner) -> None:
    """The last row of batch number 2 holds a number that is none."""
    batch = learner.clips.batch

    def poison(index: int, size: int, length: int, rows: slice, *more: Any) -> Any:
        clip = batch(index, size, length, rows, *more)
        if index == 2 and size - 1 in range(size)[rows]:
            clip.latents_BTSD[-1] = float("nan")
        return clip

    learner.clips.batch = poison


MISTAKES = {f.__name__: f for f in (same_rows, own_denominators, own_gradients, poisoned)}


def prepared(mesh: DeviceMesh | None, folder: Path, name: str, config: ParallelConfig, **more: Any) -> Learner:
    """A learner as one of the mesh's ranks; without a mesh as the only process."""
    learner = LEARNERS[name](open_world(folder), **more)
    rank, world = (0, 1) if mesh is None else (mesh.get_local_rank(), mesh.size())
    learner.parallelise(Parallel(config, rank, world))
    return learner


def updates(
    mesh: DeviceMesh | None,
    folder: Path,
    name: str,
    config: ParallelConfig,
    steps: int = STEPS,
    mistake: str | None = None,
    saved: Result | None = None,
) -> Result:
    """Metrics, weights and state after some updates.

    Args:
        saved: what an earlier call gave; it goes on from there, from other first weights.
    """
    learner = prepared(mesh, folder, name, config, seed=0 if saved is None else 5)
    first = 0
    if saved is not None:
        learner.restore(saved["weights"], saved["state"])
        first = len(saved["rows"])
    if mistake is not None:
        MISTAKES[mistake](learner)
    rows = [learner.step(index) for index in range(first, steps)]
    if saved is not None:
        rows = saved["rows"] + rows
    return {"rows": rows, "weights": dict(learner.weights()), "state": learner.state()}


def traced_updates(mesh: DeviceMesh | None, folder: Path, name: str, config: ParallelConfig) -> Result:
    """`updates` with layers that are traced, but not handed to the compiler, which takes minutes."""
    with patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")):
        return updates(mesh, folder, name, config, 2)


def shards(mesh: DeviceMesh, folder: Path, name: str) -> tuple[int, int]:
    """How many numbers of weights and of optimizer moments this rank holds, after an update."""
    learner = prepared(mesh, folder, name, ParallelConfig("fsdp"))
    learner.step(0)
    weights = sum(p.to_local().numel() for p in learner.module.parameters())
    moments = sum(one["exp_avg"].to_local().numel() for one in learner.optimizer.state().values())
    return weights, moments


def failure(mesh: DeviceMesh, folder: Path, config: ParallelConfig) -> tuple[str, int]:
    """The sentence that a poisoned batch ends in, and at which step; the ranks can go on computing together."""
    learner = prepared(mesh, folder, "dynamics", config)
    poisoned(learner)
    for index in range(4):
        try:
            learner.step(index)
        except Exception as error:
            torch.distributed.barrier()
            return f"{type(error).__name__}: {error}", index
    return "", 4


def fail_together(mesh: DeviceMesh, rank: int | None) -> str:
    """Something that fails in one rank."""
    from cluster.train_job import together  # Ray Train takes seconds to import

    def action() -> str:
        if mesh.get_local_rank() == rank:
            raise DataError(f"rank {rank} has no disk")
        return f"rank {mesh.get_local_rank()} did it"

    return together(action)
