"""Small builders that several tests share: tiny models with lively weights, and random clips.

Output layers of fresh models are zero, which hides mistakes behind them. `lively` gives every parameter numbers, from
generators of its own, so that no test depends on the order of the tests.
"""

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dreamer4.actions import ActionSpace, Part
from dreamer4.agent import Heads, HeadsConfig
from dreamer4.dynamics import Dynamics, DynamicsConfig
from dreamer4.rng import generator
from dreamer4.tokenizer import Tokenizer, TokenizerConfig
from dreamer4.transformer import Transformer, TransformerConfig
from dreamer4.types import Clip

Module = TypeVar("Module", bound=nn.Module)

MIXED_SPACE = ActionSpace((Part("camera", "categorical", 5), Part("keys", "binary", 3), Part("stick", "continuous", 2)))


def lively(module: Module, seed: int = 0) -> Module:
    """The module in eval mode with every parameter non-zero: gains around 1, the rest of variance 1 / fan-in."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator("lively", seed, name), dtype=torch.float64)
            if name.endswith("gain"):
                noise = 1 + 0.2 * noise
            elif parameter.dim() == 2:
                noise = noise * parameter.shape[1] ** -0.5
            parameter.copy_(noise)
    return module.eval()


def normal(*shape: int, seed: int | str = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=generator("normal", seed), dtype=dtype)


def tiny_transformer(seed: int = 0, **changes: Any) -> Transformer:
    """One time layer after one space layer, unless asked for more."""
    sizes = {"width": 16, "depth": 2, "heads": 2, "kv_heads": 1, "hidden": 24, "time_every": 2, "window": 4}
    return lively(Transformer(TransformerConfig(**{**sizes, **changes})), seed)


def tiny_tokenizer(seed: int = 0, **changes: Any) -> Tokenizer:
    """Frames of 10 x 8 pixels, padded to 12 x 8: six patches, four latents, two time layers per side."""
    sizes = {
        "frame": (10, 8, 3),
        "patch": 4,
        "latents": 4,
        "channels": 3,
        "pack": 2,
        "width": 16,
        "encoder_depth": 4,
        "decoder_depth": 4,
        "heads": 2,
        "hidden": 24,
        "time_every": 2,
        "window": 4,
    }
    return lively(Tokenizer(TokenizerConfig(**{**sizes, **changes})), seed)


def tiny_dynamics(seed: int = 0, **changes: Any) -> Dynamics:
    """Fits `tiny_tokenizer`; two time layers of window 4, two tasks, three actions, signal levels in eighths."""
    sizes = {
        "latents": 2,
        "channels": 6,
        "actions": ActionSpace.discrete(3).to_json(),
        "tasks": 2,
        "width": 16,
        "depth": 4,
        "heads": 2,
        "kv_heads": 1,
        "hidden": 24,
        "time_every": 2,
        "window": 4,
        "registers": 2,
        "k_max": 8,
    }
    return lively(Dynamics(DynamicsConfig(**{**sizes, **changes})), seed)


def tiny_heads(dynamics: Dynamics, seed: int = 0, **changes: Any) -> Heads:
    config = HeadsConfig(**{"hidden": 16, "layers": 1, "offsets": 3, "bins": 41, **changes})
    return lively(Heads(config, dynamics.config.feature_width, dynamics.config.space), seed)


def random_video(batch: int, length: int, frame: tuple[int, int, int] = (10, 8, 3), seed: int = 0) -> Tensor:
    shape = (batch, length, *frame)
    return torch.randint(256, shape, generator=generator("video", seed), dtype=torch.uint8)


def random_clip(
    batch: int,
    length: int,
    space: ActionSpace | None = None,
    latents: tuple[int, int] = (2, 6),
    seed: int = 0,
    segment_BT: Tensor | None = None,
) -> Clip:
    """A clip of latents with independent uniform actions that obeys the timing contract of `dreamer4.types`."""
    space, draw = space or ActionSpace.discrete(3), generator("clip", seed)
    segment_BT = torch.zeros(batch, length, dtype=torch.long) if segment_BT is None else segment_BT
    act_out = space.random(batch * length, draw).unflatten(0, (batch, length))
    first = torch.ones(batch, length, dtype=torch.bool)
    first[:, 1:] = segment_BT[:, 1:] != segment_BT[:, :-1]
    act_in = torch.where(first[..., None], 0.0, act_out.roll(1, dims=1))
    last = first.roll(-1, dims=1)
    reward = torch.randn((batch, length), generator=draw)
    return Clip(
        act_in_BTA=act_in,
        act_in_known_BT=~first,
        act_out_BTA=torch.where(last[..., None], 0.0, act_out),
        act_out_known_BT=~last,
        reward_BT=torch.where(first, 0.0, reward),
        reward_known_BT=~first,
        continue_BT=torch.ones(batch, length),
        segment_BT=segment_BT,
        task_BT=torch.zeros(batch, length, dtype=torch.long),
        latents_BTSD=torch.rand((batch, length, *latents), generator=draw) * 2 - 1,
    )


def level_inputs(dynamics: Dynamics, batch: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Keyword arguments for one pass of the dynamics without a task: random latents, levels, steps and actions."""
    config, draw = dynamics.config, generator("levels", seed)
    step_idx = torch.randint(config.k_max.bit_length(), (batch, length), generator=draw)
    grid = 1 << step_idx
    tau_idx = (torch.rand((batch, length), generator=draw) * grid).long() * (config.k_max // grid)
    return {
        "noised_BTSD": torch.randn((batch, length, config.latents, config.channels), generator=draw),
        "tau_idx_BT": tau_idx,
        "step_idx_BT": step_idx,
        "act_in_BTA": config.space.random(batch * length, draw).unflatten(0, (batch, length)),
        "act_in_known_BT": torch.ones(batch, length, dtype=torch.bool),
    }


def changed(tensor: Tensor, *index: Any) -> Tensor:
    """A copy with other numbers at one place: whole numbers and truths move to a neighbour, the rest gains 1."""
    copy = tensor.clone()
    if tensor.dtype == torch.bool:
        copy[index] = ~copy[index]
    elif tensor.is_floating_point():
        copy[index] += 1
    else:
        copy[index] = torch.where(copy[index] > 0, copy[index] - 1, copy[index] + 1)
    return copy


def frames_that_differ(a_BT: Tensor, b_BT: Tensor) -> list[int]:
    """Frames in which two results `[B, T, ...]` are not the same to the bit."""
    different = (a_BT != b_BT).transpose(0, 1).flatten(1).any(1)
    return np.flatnonzero(different.numpy()).tolist()
