"""The interactive dynamics model: what comes next, given what was and what is done (paper, section 3.2).

Every frame is one block of tokens, `[actions | signal level and step size | latents | registers | agent]`. The action
of block t is `act_in[t]`, the one that led to frame t. Agent tokens see everything and are seen by nothing, so that
the task can change the future through actions only (section 3.3).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamer4.actions import ActionSpace
from dreamer4.attention import rope_angles
from dreamer4.cache import TimeCache
from dreamer4.decode import Sight
from dreamer4.errors import ConfigError, DataError
from dreamer4.shortcut import ShortcutConfig
from dreamer4.transformer import (
    RMSNorm,
    Transformer,
    TransformerConfig,
    initialise_linears,
    learned_tokens,
)


@dataclass(frozen=True)
class DynamicsConfig:
    """Sizes of the world model. The paper: 256 x 32 latents, window 192, about 1.6 B parameters."""

    latents: int = 16
    channels: int = 16
    actions: Sequence[dict[str, Any]] = field(default_factory=lambda: ActionSpace.discrete(2).to_json())
    tasks: int = 1
    width: int = 64
    depth: int = 8
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 256
    time_every: int = 4
    window: int = 8
    soft_cap: float | None = 50.0
    registers: int = 4  # [G]
    action_tokens: int = 1  # [G]
    agent_tokens: int = 1  # [G]
    k_max: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "actions", tuple(dict(part) for part in self.actions))
        if self.width % 2:
            raise ConfigError(f"width must be even, got {self.width}")

    @property
    def space(self) -> ActionSpace:
        return ActionSpace.from_json(self.actions)

    @property
    def world_slots(self) -> int:
        """Tokens per frame without agent tokens."""
        return self.action_tokens + 1 + self.latents + self.registers

    @property
    def feature_width(self) -> int:
        """M of the agent features: the outputs of a frame's agent tokens side by side."""
        return self.agent_tokens * self.width

    def transformer(self) -> TransformerConfig:
        return TransformerConfig(
            self.width,
            self.depth,
            self.heads,
            self.kv_heads,
            self.hidden,
            self.time_every,
            self.window,
            self.soft_cap,
        )


@dataclass(frozen=True)
class DynamicsOutput:
    """`clean_BTSD`: the predicted clean latents, none of them where they were not asked for.

    `features_BTM`: agent features, absent without a task.
    """

    clean_BTSD: Tensor
    features_BTM: Tensor | None


class ActionEncoder(nn.Module):
    """Every part of an action becomes tokens of its own, summed over the parts and a learned embedding.

    Frames without a known action (unlabelled video, first frames) get the learned embedding alone, exactly.
    """

    def __init__(self, space: ActionSpace, tokens: int, width: int):
        super().__init__()
        self.space, self.tokens = space, tokens
        self.base = learned_tokens(tokens, width)
        self.parts = nn.ModuleList()
        for part in space.parts:
            inputs = part.size if part.kind != "binary" else 2 * part.size
            linear = nn.Linear(inputs, tokens * width, bias=False)
            nn.init.normal_(linear.weight, std=0.02 if part.kind == "continuous" else 0.1)
            self.parts.append(linear)

    def forward(self, actions_BTA: Tensor, known_BT: Tensor) -> Tensor:
        """`[B, T, tokens, M]`."""
        actions_BTA = torch.where(known_BT[..., None], actions_BTA, 0.0)  # whatever an unknown action's numbers are
        total = torch.zeros((), device=actions_BTA.device)
        for part, encode, values in zip(self.space.parts, self.parts, self.space.split(actions_BTA), strict=True):
            if part.kind == "categorical":
                one_hot = F.one_hot(values[..., 0].long(), part.size)
            elif part.kind == "binary":  # a learned vector for every key, up or down
                one_hot = torch.cat([values, 1 - values], dim=-1)
            else:
                one_hot = values
            total = total + encode(one_hot.to(self.base.dtype))
        total = total.unflatten(-1, (self.tokens, -1))
        return self.base + torch.where(known_BT[..., None, None], total, 0.0)


class Dynamics(nn.Module):
    """The world model. It is trained by `learners.dynamics`, extended by agent tokens in finetuning, then frozen.

    The parameters of agent tokens belong to it from the start, so one checkpoint layout serves all phases; passes
    without a task don't use them.
    """

    mask_SS: Tensor
    angles_SK: Tensor

    def __init__(self, config: DynamicsConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.action_encoder = ActionEncoder(config.space, config.action_tokens, width)
        self.signal_embedding = nn.Embedding(config.k_max, width // 2)  # no row for tau = 1: it is never trained
        self.step_embedding = nn.Embedding(config.k_max.bit_length(), width // 2)
        self.latent_in = nn.Linear(config.channels, width)
        self.slot_embedding = learned_tokens(config.latents, width)
        self.registers = learned_tokens(config.registers, width)
        self.agent_base = learned_tokens(config.agent_tokens, width)
        self.task_embedding = nn.Embedding(config.tasks, config.agent_tokens * width)
        self.transformer = Transformer(config.transformer())
        self.latent_out = nn.Linear(width, config.channels)
        self.feature_norm = RMSNorm(width)
        initialise_linears(self.latent_in)
        nn.init.zeros_(self.latent_out.weight)
        nn.init.zeros_(self.latent_out.bias)
        for embedding in (self.signal_embedding, self.step_embedding, self.task_embedding):
            nn.init.normal_(embedding.weight, std=0.1)
        slots = config.world_slots + config.agent_tokens
        slot_S = torch.arange(slots, device="cpu")  # real numbers also where the model is built on the meta device
        agent_S = slot_S >= config.world_slots
        self.register_buffer("mask_SS", agent_S[:, None] | ~agent_S[None, :], persistent=False)
        angles = rope_angles(slot_S, self.transformer.config.head_size, 10_000.0)
        self.register_buffer("angles_SK", angles, persistent=False)

    def init_cache(self, batch: int, agent: bool = True) -> TimeCache:
        """An empty past of `batch` streams, with or without agent tokens."""
        slots = self.config.world_slots + (self.config.agent_tokens if agent else 0)
        return self.transformer.init_cache(batch, self.angles_SK[:slots])

    def sight(self, agent: bool) -> Sight:
        """Which slots see which: agent tokens all, and all others those of the world."""
        world, end = slice(0, self.config.world_slots), self.config.world_slots + self.config.agent_tokens
        return [(world, world), (slice(world.stop, end), slice(0, end))] if agent else [(world, world)]

    def blocks(
        self,
        noised_BTSD: Tensor,
        tau_idx_BT: Tensor,
        step_idx_BT: Tensor,
        action_tokens: Tensor,
        task_BT: Tensor | None,
    ) -> Tensor:
        """The tokens of all frames, `[B, T, slots, M]`."""
        batch, length = tau_idx_BT.shape
        levels = torch.cat([self.signal_embedding(tau_idx_BT), self.step_embedding(step_idx_BT)], dim=-1)
        latents = self.latent_in(noised_BTSD.to(self.latent_in.weight.dtype)) + self.slot_embedding
        registers = self.registers.expand(batch, length, -1, -1)
        tokens = [action_tokens, levels[:, :, None], latents, registers]
        if task_BT is not None:
            task = self.task_embedding(task_BT).unflatten(-1, (self.config.agent_tokens, -1))
            tokens.append(self.agent_base + task)
        return torch.cat([x.to(latents.dtype) for x in tokens], dim=2)

    def forward(
        self,
        noised_BTSD: Tensor,
        tau_idx_BT: Tensor,
        step_idx_BT: Tensor,
        act_in_BTA: Tensor,
        act_in_known_BT: Tensor,
        segment_BT: Tensor | None = None,
        task_BT: Tensor | None = None,
        cache: TimeCache | None = None,
        commit: bool = False,
        predict: bool = True,
        drafts: bool = False,
    ) -> DynamicsOutput:
        """Predicts the clean latents of every frame from its noised ones and the past.

        Args:
            noised_BTSD: latents at the signal levels of `tau_idx_BT`.
            tau_idx_BT, step_idx_BT: indices of `dreamer4.shortcut`.
            act_in_BTA, act_in_known_BT: the actions that led to the frames, and whether they are known.
            segment_BT: frames of different segments don't see each other.
            task_BT: index of the task; adds agent tokens and returns their features.
            cache, commit: the past of a stream, and whether this pass becomes part of it.
            drafts: without a cache, the frames come twice: as they are committed, and then as drafts, each of which is
                seen by itself only and sees of the first half the frames before its own.
            predict: with a cache; False leaves the latents out, where only features or a commit are wanted.

        Raises:
            DataError: the latents have another shape than the model's.
        """
        config = self.config
        if tuple(noised_BTSD.shape[2:]) != (config.latents, config.channels):
            raise DataError(
                f"latents of {tuple(noised_BTSD.shape[2:])} don't fit a dynamics model for "
                f"{(config.latents, config.channels)}: use the tokenizer that it was trained with"
            )
        actions = self.action_encoder(act_in_BTA, act_in_known_BT)
        x = self.blocks(noised_BTSD, tau_idx_BT, step_idx_BT, actions, task_BT)
        slots, agent = x.shape[2], task_BT is not None
        first = config.action_tokens + 1
        latents, features = slice(first, first + config.latents), slice(config.world_slots, slots)
        angles = self.angles_SK[:slots]
        if cache is None:
            x, start = self.transformer(x, angles, self.mask_SS if agent else None, segment_BT, drafts=drafts), 0
        else:
            start = latents.start if predict else features.start
            wanted = slice(start, features.stop if agent or not predict else latents.stop)
            x = self.transformer(x, angles, None, segment_BT, cache, commit, self.sight(agent), wanted)
        clean = self.latent_out(x[:, :, latents.start - start : latents.stop - start] if predict else x[:, :, :0])
        if not agent:
            return DynamicsOutput(clean, None)
        return DynamicsOutput(clean, self.feature_norm(x[:, :, features.start - start :]).flatten(2))


def check_shortcut(dynamics: DynamicsConfig, shortcut: ShortcutConfig) -> None:
    """The objective's grid has to be the embedding tables' (invariant 18)."""
    if dynamics.k_max != shortcut.k_max:
        raise ConfigError(f"dynamics.k_max ({dynamics.k_max}) must equal shortcut.k_max ({shortcut.k_max})")
