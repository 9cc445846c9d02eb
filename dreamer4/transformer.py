"""The block-causal space/time transformer that tokenizer and dynamics share (paper, section 3.1).

Tokens lie on a grid `[B, T, S, M]`: T frames of S slots. A space layer lets the slots of one frame see each other, a
time layer (every `time_every`-th) lets a slot see itself in the last `window` frames. Nothing sees the future.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamer4.cache import TimeCache
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
            return F.rms_norm(x, self.gain.shape, self.gain, eps=1e-6)
        return F.rms_norm(x.float(), self.gain.shape, self.gain.float(), eps=1e-6).to(x.dtype)


def rope_angles(position_L: Tensor, head_size: int, base: float) -> Tensor:
    """`[L, head_size / 2]` rotation angles of integer positions; float64, so that they stay exact at any position."""
    pairs = torch.arange(head_size // 2, dtype=torch.float64, device=position_L.device)
    return position_L.double()[:, None] * base ** (-pairs / (head_size // 2))


def axial_angles(row_L: Tensor, column_L: Tensor, head_size: int, base: float) -> Tensor:
    """Angles of two-dimensional positions: one half of the pairs turns by the row, the other by the column."""
    return torch.cat([rope_angles(row_L, head_size // 2, base), rope_angles(column_L, head_size // 2, base)], dim=-1)


class Rotation:
    """Cosines and sines for one set of positions, made once per forward pass and used by all layers."""

    def __init__(self, angles_LK: Tensor, dtype: torch.dtype):
        self.cos = torch.cat([angles_LK.cos(), angles_LK.cos()], dim=-1).to(dtype)
        self.sin = torch.cat([-angles_LK.sin(), angles_LK.sin()], dim=-1).to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Rotates queries or keys `[..., L, K]`."""
        return x * self.cos + x.roll(x.shape[-1] // 2, dims=-1) * self.sin


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, soft_cap: float | None) -> Tensor:
    """Grouped-query attention: q `[..., N, Lq, K]`, k and v `[..., Nkv, Lk, K]`, mask `[..., 1, Lq, Lk]` true = seen.

    The cap is applied before the mask, so that masked entries stay masked.
    """
    heads, queries, size = q.shape[-3:]
    groups = heads // k.shape[-3]
    if soft_cap is None:
        batch = q.shape[:-3]
        if mask is not None:
            mask = mask.expand(*batch, 1, queries, k.shape[-2]).flatten(0, -4)
        q, k, v = (x.flatten(0, -4) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=groups > 1).unflatten(0, batch)
    # Queries that share a key head are laid end to end: one matrix product per key head, no repeated keys.
    q = q.unflatten(-3, (k.shape[-3], groups)).flatten(-3, -2)
    logits = (q * size**-0.5) @ k.transpose(-2, -1)
    logits = soft_cap * torch.tanh(logits / soft_cap)
    if mask is not None:
        logits = logits.unflatten(-2, (groups, queries))
        logits = logits.masked_fill(~mask.unsqueeze(-3), float("-inf")).flatten(-3, -2)
    out = logits.softmax(dim=-1) @ v
    return out.unflatten(-2, (groups, queries)).flatten(-4, -3)


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
    """Every slot sees itself in earlier frames: those of this pass, and those that a cache remembers."""

    def forward(
        self, x_BTSM: Tensor, rotate: Rotation, mask: Tensor | None, cache: TimeCache | None, index: int, commit: bool
    ) -> Tensor:
        q, k, v = self.attention.project(self.attention_norm(x_BTSM).transpose(1, 2), rotate)
        if cache is not None:
            keys, values = cache.extended(index, k, v)
            if commit:
                cache.write(index, k, v)
            k, v = keys, values
        attended = self.attention.merge(attend(q, k, v, mask, self.attention.config.soft_cap))
        x_BTSM = x_BTSM + attended.transpose(1, 2)
        return x_BTSM + self.mlp(self.mlp_norm(x_BTSM))


def banded_mask(segment_BT: Tensor | None, length: int, window: int, device: torch.device) -> Tensor:
    """`[B or 1, T, T]`: frame t sees the frames t - window + 1 .. t of its own segment."""
    frame_T = torch.arange(length, device=device)
    age_TT = frame_T[:, None] - frame_T[None, :]
    mask = ((age_TT >= 0) & (age_TT < window))[None]
    return mask if segment_BT is None else mask & (segment_BT[:, :, None] == segment_BT[:, None, :])


class Transformer(nn.Module):
    """The stack. `forward` takes tokens `[B, T, S, M]` and returns the same shape, normalised.

    Args of `forward`:
        space_angles: `[S, K / 2]` rotary angles of the slots.
        space_mask_SS: bool, true where slot row may see slot column; None = all.
        segment_BT: int; frames of different segments of a row don't see each other. With a cache, segment 0
            continues what the cache holds.
        cache: the past; made by `init_cache`. Only a `commit` pass changes it.
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

    def init_cache(self, batch: int, slots: int, device: torch.device | str = "cpu", dtype=torch.float32) -> TimeCache:
        c = self.config
        heads = next(layer.attention.kv_heads for layer in self.layers if isinstance(layer, TimeLayer))
        shape = (batch, slots, heads, c.window - 1, c.head_size)
        return TimeCache.empty(c.time_layers, shape, device, dtype)

    def forward(
        self,
        x_BTSM: Tensor,
        space_angles: Tensor,
        space_mask_SS: Tensor | None = None,
        segment_BT: Tensor | None = None,
        cache: TimeCache | None = None,
        commit: bool = False,
    ) -> Tensor:
        length, dtype, device = x_BTSM.shape[1], torch.promote_types(x_BTSM.dtype, torch.float32), x_BTSM.device
        start = 0 if cache is None else cache.position
        frames = torch.arange(start, start + length, device=device)
        turn_time = Rotation(rope_angles(frames, self.config.head_size, self.config.rope_base), dtype)
        turn_space = Rotation(space_angles, dtype)
        time_mask = banded_mask(segment_BT, length, self.config.window, device)
        if cache is not None:
            time_mask = cache.mask(time_mask, segment_BT, length, self.config.window)
        time_mask = time_mask[:, None, None]  # the same for all slots and heads
        index = 0
        for layer in self.layers:
            if isinstance(layer, TimeLayer):
                x_BTSM = layer(x_BTSM, turn_time, time_mask, cache, index, commit)
                index += 1
            else:
                x_BTSM = layer(x_BTSM, turn_space, space_mask_SS)
        if cache is not None and commit:
            cache.advance(segment_BT, length)
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
