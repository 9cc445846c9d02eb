"""Complete configurations by name, from a smoke test to the paper's sizes."""

from collections.abc import Callable
from dataclasses import replace

import torch

from cluster.config import CONTROLS, DataConfig, EvaluationConfig, ResourceConfig, RunConfig
from dreamer4.actions import ActionSpace, Part
from dreamer4.agent import HeadsConfig
from dreamer4.dynamics import Dynamics, DynamicsConfig
from dreamer4.envs.planners import Mixture
from dreamer4.errors import ConfigError, nearest
from dreamer4.foveation import VPT
from dreamer4.imagination import ImaginationConfig
from dreamer4.shortcut import ShortcutConfig
from dreamer4.tokenizer import Tokenizer, TokenizerConfig
from dreamer4.transformer import parameter_count
from learners.agent import AgentTraining
from learners.dynamics import DynamicsTraining
from learners.iql import IQLTraining
from learners.optim import OptimConfig
from learners.policy import PolicyTraining
from learners.tokenizer import TokenizerTraining


def cosine(lr: float, warmup_steps: int = 50, muon_lr: float | None = None) -> OptimConfig:
    return OptimConfig(lr=lr, muon_lr=muon_lr, warmup_steps=warmup_steps, schedule="cosine")


def laptop() -> RunConfig:
    """A grid world from pixels on two CPU cores: demonstrations, world model and agent in under half an hour."""
    return RunConfig(
        env="MiniGrid-Dynamic-Obstacles-5x5-v0",
        data=DataConfig(frames=60_000),
        tokenizer=TokenizerConfig(
            frame=(40, 40, 3),
            patch=20,
            latents=8,
            channels=8,
            pack=2,
            width=64,
            encoder_depth=2,
            decoder_depth=2,
            heads=4,
            hidden=256,
            time_every=2,
            window=2,
            mask_max=0.1,
            lpips_weight=0.0,
            standardize=True,
            motion_weight=30.0,
        ),
        tokenizer_training=TokenizerTraining(steps=1000, batch=32, length=2, optim=cosine(3e-3, muon_lr=1e-2)),
        dynamics=DynamicsConfig(
            width=64,
            depth=4,
            heads=4,
            kv_heads=4,
            hidden=256,
            time_every=2,
            window=8,
            registers=1,
            k_max=8,
        ),
        shortcut=ShortcutConfig(
            k_max=8,
            context_noise=0.125,
            ramp=False,
            context_share=0.5,
            pure_noise=0.5,
            bootstrap_rows=0.25,
        ),
        dynamics_training=DynamicsTraining(
            steps=2000, batch=32, length=8, long_length=16, long_share=0.1, optim=cosine(3e-3, muon_lr=1.2e-2)
        ),
        heads=HeadsConfig(hidden=128, layers=2, offsets=4),
        agent_training=AgentTraining(
            steps=1000, batch=32, length=8, context_share=0.75, optim=cosine(1e-3, muon_lr=4e-3)
        ),
        imagination=ImaginationConfig(sampling_steps=4, horizon=8, context=8),
        policy=PolicyTraining(
            steps=200,
            batch=64,
            discount=0.97,
            policy_optim=OptimConfig(lr=3e-3),
            value_optim=OptimConfig(lr=1e-3),
        ),
        controls=("filtered_bc",),
        filtered_bc_training=AgentTraining(steps=300, batch=32, length=8, optim=cosine(1e-3)),
    )


def smoke() -> RunConfig:
    """Every stage of `laptop` with next to no training: whether the path is open, in about a minute."""
    full = laptop()
    return replace(
        full,
        data=replace(full.data, frames=1500, shard_frames=500, validation=0.2),
        tokenizer_training=replace(full.tokenizer_training, steps=30, save_every=15),
        dynamics_training=replace(full.dynamics_training, steps=30, save_every=15),
        agent_training=replace(full.agent_training, steps=20, save_every=10),
        policy=replace(full.policy, steps=6, batch=16, warmup_steps=2, save_every=3),
        filtered_bc_training=replace(full.filtered_bc_training, steps=10, save_every=5),
        evaluation=EvaluationConfig(episodes=8, parallel=4, actors=2, windows=32),
    )


def doorkey() -> RunConfig:
    """Key, door, goal from pixels under a tight limit of steps. Every recording dawdles in one or two of the three
    stages and slips in two of five steps; half of the players don't know where the goal is."""
    full = laptop()
    return replace(
        full,
        env="MiniGrid-DoorKey-6x6-Hurry-v0",
        data=DataConfig(
            frames=44_000,
            half_distinct=True,
            demonstrator=Mixture(careful_share=0.0, careless_epsilon=0.4, dawdling=2, lost_share=0.5),
        ),
        tokenizer=replace(
            full.tokenizer, frame=(48, 48, 3), patch=16, latents=16, pack=4, latent_rms=1.5, latent_noise=0.25
        ),
        tokenizer_training=replace(full.tokenizer_training, steps=6000),
        dynamics=replace(full.dynamics, k_max=4),
        # Sampled in 4 steps of a quarter: there is no larger step to bootstrap.
        shortcut=ShortcutConfig(
            k_max=4,
            context_noise=0.25,
            ramp=False,
            drafts=True,
            pure_noise=0.7,
            bootstrap_rows=0.0,
        ),
        dynamics_training=replace(full.dynamics_training, steps=4000, image_share=0.1),
        agent_training=replace(full.agent_training, steps=1500, image_share=0.1, context_share=0.0),
        imagination=ImaginationConfig(sampling_steps=4, horizon=16, context=8),
        # Two of five recorded actions are slips: a prior not to stay near. The world model has no clock, and a later
        # goal is worth less: the discount stands for it.
        policy=replace(
            full.policy,
            steps=400,
            discount=0.93,
            beta=0.03,
            policy_optim=cosine(3e-3, 10),
            value_optim=cosine(3e-3, 10),
        ),
        controls=CONTROLS,
        best_share=0.015,  # half of those that reach the goal
        scratch_bc_training=replace(full.agent_training, steps=1000, optim=cosine(1e-3)),
        iql_training=IQLTraining(steps=6000, temperature=0.003, also=(0.001, 0.01), hidden=128),
        evaluation=EvaluationConfig(episodes=500),
    )


def doorkey_large() -> RunConfig:
    """`doorkey` with ten times the parameters, for one GPU. A wider model wants lower learning rates: AdamW's by its
    width, Muon's by the root of it."""
    small = doorkey()
    return replace(
        small,
        tokenizer=replace(small.tokenizer, width=192, heads=6, hidden=1280),
        tokenizer_training=replace(small.tokenizer_training, optim=cosine(1e-3, muon_lr=5e-3)),
        dynamics=replace(small.dynamics, width=192, heads=6, kv_heads=6, hidden=1024),
        dynamics_training=replace(small.dynamics_training, optim=cosine(1e-3, muon_lr=6e-3)),
        agent_training=replace(small.agent_training, optim=cosine(5e-4, muon_lr=2e-3)),
        resources=ResourceConfig(trainer_gpus=0.5, worker_gpus=0.5, collectors=8),
    )


def crafter() -> RunConfig:
    """64 x 64 pixels and one discrete action of seventeen, for one GPU."""
    return RunConfig(
        env="crafter",
        data=DataConfig(frames=1_000_000, shard_frames=100_000, codec="auto"),
        tokenizer=TokenizerConfig(
            frame=(64, 64, 3),
            patch=8,
            latents=32,
            channels=16,
            pack=2,
            width=256,
            encoder_depth=4,
            decoder_depth=4,
            heads=8,
            hidden=1024,
            window=16,
            lpips_weight=0.0,
        ),
        tokenizer_training=TokenizerTraining(
            steps=50_000, batch=16, length=32, optim=cosine(3e-4, 1000), save_every=1000
        ),
        dynamics=DynamicsConfig(
            latents=16,
            channels=32,
            actions=ActionSpace.discrete(17).to_json(),
            width=256,
            depth=8,
            heads=8,
            kv_heads=2,
            hidden=1024,
            window=32,
            k_max=64,
        ),
        dynamics_training=DynamicsTraining(
            steps=100_000,
            batch=32,
            length=16,
            long_length=64,
            long_batch=8,
            optim=cosine(3e-4, 1000),
            save_every=1000,
        ),
        heads=HeadsConfig(hidden=512),
        agent_training=AgentTraining(steps=30_000, batch=32, length=16, optim=cosine(1e-4, 500), save_every=1000),
        imagination=ImaginationConfig(horizon=16, context=16),
        policy=PolicyTraining(steps=5000, batch=256, warmup_steps=200, save_every=250),
        controls=("filtered_bc",),
        filtered_bc_training=AgentTraining(steps=10_000, batch=32, length=16, optim=cosine(1e-4, 500)),
        resources=ResourceConfig(trainer_gpus=0.5, worker_gpus=0.5, collectors=8, object_store_mb=4000),
    )


def minecraft_actions() -> ActionSpace:
    """23 keys and buttons, and the mouse in 11 x 11 foveated bins (`dreamer4.foveation`)."""
    return ActionSpace((Part("keyboard", "binary", 23), Part("mouse", "categorical", VPT.classes, VPT)))


def minecraft() -> RunConfig:
    """The paper's sizes: a tokenizer of 400 M parameters and a world model of 1.6 B, for many GPUs."""
    return RunConfig(
        env="minecraft",
        data=DataConfig(frames=183_000_000, shard_frames=100_000, validation=0.01, codec="auto"),  # 2541 hours at 20 Hz
        tokenizer=TokenizerConfig(
            frame=(360, 640, 3),
            patch=16,
            padded=(384, 640),  # 24 x 40 patches
            latents=512,
            channels=16,
            pack=2,
            width=1024,
            encoder_depth=12,
            decoder_depth=12,
            heads=16,
            hidden=4096,
            window=32,
        ),
        tokenizer_training=TokenizerTraining(
            steps=100_000, batch=256, length=64, optim=OptimConfig(lr=1e-4, warmup_steps=2000), save_every=1000
        ),
        dynamics=DynamicsConfig(
            latents=256,
            channels=32,
            actions=minecraft_actions().to_json(),
            tasks=20,
            width=2048,
            depth=28,
            heads=16,
            kv_heads=4,
            hidden=8192,
            window=192,
            k_max=64,
        ),
        dynamics_training=DynamicsTraining(
            steps=100_000,
            batch=256,
            length=64,
            long_length=256,
            long_batch=256,
            long_only_steps=10_000,
            optim=OptimConfig(lr=1e-4, warmup_steps=2000),
            save_every=1000,
        ),
        heads=HeadsConfig(hidden=1024, continues=False),  # an episode ends by its clock
        agent_training=AgentTraining(
            steps=20_000,
            batch=256,
            length=64,
            relevant="events",
            optim=OptimConfig(lr=1e-4, warmup_steps=1000),
            save_every=1000,
        ),
        imagination=ImaginationConfig(horizon=16, context=64),
        policy=PolicyTraining(steps=10_000, batch=64, rollouts_per_step=4, warmup_steps=300, save_every=250),
        controls=("filtered_bc",),
        filtered_bc_training=AgentTraining(steps=10_000, batch=256, length=64, save_every=1000),
        evaluation=EvaluationConfig(episodes=1000, parallel=8, actors=16, max_frames=72_000),  # an hour at 20 Hz
        resources=ResourceConfig(
            device="cuda", trainer_gpus=1.0, worker_gpus=1.0, workers=8, collectors=8, object_store_mb=32_000
        ),
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "laptop": laptop,
    "smoke": smoke,
    "doorkey": doorkey,
    "doorkey-large": doorkey_large,
    "crafter": crafter,
    "minecraft": minecraft,
}


def preset(name: str) -> RunConfig:
    """Raises `ConfigError` that names the nearest preset."""
    if name not in PRESETS:
        raise ConfigError(f"there is no preset '{name}'{nearest(name, PRESETS)}")
    return PRESETS[name]()


def parameters(config: RunConfig) -> tuple[int, int]:
    """Parameters of tokenizer and world model, counted without allocating them."""
    with torch.device("meta"):
        return parameter_count([Tokenizer(config.tokenizer)]), parameter_count([Dynamics(config.dynamics)])
