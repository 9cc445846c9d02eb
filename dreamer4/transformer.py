"""The block-causal space/time transformer that tokenizer and dynamics share (paper, section 3.1).

Tokens lie on a grid `[B, T, S, M]`: T frames of S slots. A space layer lets the slots of one frame see each other, a
time layer (every `time_every`-th) lets a slot see itself in the last `window` frames. Nothing sees the future.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamer4.attention import EPSILON, Rotation, Turn, attend, banded_mask, rope_angles
from dreamer4.cache import TimeCache, empty_cache
from dreamer4.decode import Sight, follow, gains
from dreamer4.errors import ConfigError


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and switches of one transformer. The paper gives the parts; values marked [G] are our choice."""

    width: int = 64
    depth: int = 4
    heads: int = 4
    kv_heads: int = 2  # grouped-query attention; equal to `heads` is plain multi-head attention
    hidden: int = 256  # of the SwiGLU
    time_every: int = 4
    window: int = 16  # frames that a time layer sees, the current one included
    soft_cap: float | None = 50.0  # of attention logits [G]; None switches to the fused kernel
    rope_base: float = 10_000.0  # [G]

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "kv_heads", "hidden", "time_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ConfigError(f"width {self.width} must be a multiple of 4 x heads ({self.heads})")
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.depth % self.time_every:
            raise ConfigError(f"depth ({self.depth}) must be a multiple of time_every ({self.time_every})")
        if self.window < 2:
            raise ConfigError(f"window must be at least 2 frames, got {self.window}")

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def time_layers(self) -> int:
        return self.depth // self.time_every

    @property
    def reach(self) -> int:
        """How many frames back an output can depend on (paper.md, section 7)."""
        return self.time_layers * (self.window - 1)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis, computed in fp32, with a learned gain."""

    def __init__(self, size: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.gain.dtype:
            return F.rms_norm(x, self.gain.shape, self.gain, eps=EPSILON)
        return F.rms_norm(x.float(), self.gain.shape, self.gain.float(), eps=EPSILON).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention with grouped queries, QKNorm and rotary positions, over the second last axis."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        # Of queries, keys and values. Where ranks share the heads (`learners.tensor_parallel`), of this rank's only.
        self.sizes = [config.heads * config.head_size, *(2 * [config.kv_heads * config.head_size])]
        self.qkv = nn.Linear(config.width, sum(self.sizes), bias=False)
        self.q_norm = RMSNorm(config.head_size)
        self.k_norm = RMSNorm(config.head_size)
        self.out = nn.Linear(config.width, config.width, bias=False)

    @property
    def norms(self) -> tuple[RMSNorm, RMSNorm]:
        return self.q_norm, self.k_norm

    @property
    def kv_heads(self) -> int:
        return self.sizes[1] // self.config.head_size

    def project(self, x: Tensor, rotate: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `[..., N, L, K]`, keys and values `[..., Nkv, L, K]` of tokens `[..., L, M]`."""
        size = (-1, self.config.head_size)
        q, k, v = (part.unflatten(-1, size).transpose(-3, -2) for part in self.qkv(x).split(self.sizes, dim=-1))
        return rotate(self.q_norm(q)).to(v.dtype), rotate(self.k_norm(k)).to(v.dtype), v

    def merge(self, out: Tensor) -> Tensor:
        return self.out(out.transpose(-3, -2).flatten(-2))

    def forward(self, x: Tensor, rotate: Rotation, mask: Tensor | None) -> Tensor:
        q, k, v = self.project(x, rotate)
        return self.merge(attend(q, k, v, mask, self.config.soft_cap))


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class Layer(nn.Module):
    """Pre-norm attention and pre-norm MLP, both residual."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.width)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.width)
        self.mlp = SwiGLU(config.width, config.hidden)


class SpaceLayer(Layer):
    """Every slot of a frame sees the slots of the same frame that the mask allows."""

    def forward(self, x_BTSM: Tensor, rotate: Rotation, mask_SS: Tensor | None) -> Tensor:
        x_BTSM = x_BTSM + self.attention(self.attention_norm(x_BTSM), rotate, mask_SS)
        return x_BTSM + self.mlp(self.mlp_norm(x_BTSM))


class TimeLayer(Layer):
    """Every slot sees itself in earlier frames."""

    def forward(self, x_BTSM: Tensor, rotate: Rotation, mask: Tensor) -> Tensor:
        attended = self.attention(self.attention_norm(x_BTSM).transpose(1, 2), rotate, mask)
        x_BTSM = x_BTSM + attended.transpose(1, 2)
        return x_BTSM + self.mlp(self.mlp_norm(x_BTSM))


class Transformer(nn.Module):
    """The stack. `forward` takes tokens `[B, T, S, M]` and returns the same shape, normalised.

    Args of `forward`:
        space_angles: `[S, K / 2]` rotary angles of the slots.
        space_mask_SS: bool, true where slot row may see slot column; None = all.
        segment_BT: int; frames of different segments of a row don't see each other. With a cache, segment 0
            continues what the cache holds.
        cache: the past of a stream; made by `init_cache`. Inference only: see `dreamer4.decode`, which reads the rest.
        commit: whether the frames become part of the past.
        sight: with a cache, `space_mask_SS` as pairs of slots and what they see.
        wanted: with a cache, the slots whose outputs are returned; by default all.
        drafts: without a cache, the second half of the frames are drafts of the first half (see `banded_mask`).
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(
            TimeLayer(config) if (i + 1) % config.time_every == 0 else SpaceLayer(config) for i in range(config.depth)
        )
        self.norm = RMSNorm(config.width)
        initialise_linears(self)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            for linear in (layer.attention.out, layer.mlp.down):
                linear.weight.data.mul_((2 * config.depth) ** -0.5)

    @property
    def is_time(self) -> list[bool]:
        """Of every layer, whether it is a time layer."""
        return [isinstance(layer, TimeLayer) for layer in self.layers]

    def init_cache(self, batch: int, space_angles: Tensor) -> TimeCache:
        """An empty past of `batch` streams whose slots have these angles, for the weights as they are now."""
        c, gain = self.config, self.norm.gain
        of_space = [gains(layer.attention) for layer in self.layers if isinstance(layer, SpaceLayer)]
        of_time = [gains(layer.attention) for layer in self.layers if isinstance(layer, TimeLayer)]
        heads = next(layer.attention.kv_heads for layer in self.layers if isinstance(layer, TimeLayer))
        return empty_cache(
            c.window - 1,
            (space_angles.shape[0], batch, heads, c.head_size),
            [Turn.of(space_angles, own) for own in of_space],
            of_time,
            c.rope_base,
            gain.detach(),
        )

    def forward(
        self,
        x_BTSM: Tensor,
        space_angles: Tensor,
        space_mask_SS: Tensor | None = None,
        segment_BT: Tensor | None = None,
        cache: TimeCache | None = None,
        commit: bool = False,
        sight: Sight | None = None,
        wanted: slice | None = None,
        drafts: bool = False,
    ) -> Tensor:
        if cache is not None:
            everything = slice(0, x_BTSM.shape[2])
            sight, wanted = sight or [(everything, everything)], wanted or everything
            return follow(self, x_BTSM, sight, wanted, segment_BT, cache, commit)
        length, dtype, device = x_BTSM.shape[1], torch.promote_types(x_BTSM.dtype, torch.float32), x_BTSM.device
        frames = torch.arange(length, device=device)
        if drafts:  # which stand where their frames stand
            frames = frames % (length // 2)
        turn_time = Rotation(rope_angles(frames, self.config.head_size, self.config.rope_base), dtype)
        turn_space = Rotation(space_angles, dtype)
        time_mask = banded_mask(segment_BT, length, self.config.window, device, drafts)
        time_mask = time_mask[:, None, None]  # the same for all slots and heads
        for layer in self.layers:
            if isinstance(layer, TimeLayer):
                x_BTSM = layer(x_BTSM, turn_time, time_mask)
            else:
                x_BTSM = layer(x_BTSM, turn_space, space_mask_SS)
        return self.norm(x_BTSM)


def initialise_linears(module: nn.Module) -> None:
    """Truncated normal of variance 1 / fan-in; 0.02 at the paper's width."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            std = child.in_features**-0.5
            nn.init.trunc_normal_(child.weight, std=std, a=-3 * std, b=3 * std)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def learned_tokens(*shape: int) -> nn.Parameter:
    """Learned embeddings; never zero, because RMSNorm of a zero vector has unbounded gradients."""
    return nn.Parameter(torch.randn(shape) * 0.02)


def parameter_count(modules: Sequence[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())
