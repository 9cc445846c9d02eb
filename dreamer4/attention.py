"""Positions and attention, as functions: how queries and keys turn, and what they make of values.

Training reads `Rotation` and `attend`. Streams read `Turn` and `weigh`, which do the same in fewer steps: the learned
gains of the normalisation and the scale of the logits are part of the tables of cosines and sines.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-6  # of all root-mean-square normalisations


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


def query_scale(size: int, soft_cap: float | None) -> float:
    """What queries are multiplied by before `weigh`, so that logits need no scaling."""
    return size**-0.5 / (soft_cap or 1.0)


def length_of(x: Tensor) -> Tensor:
    """Length of the last axis, `[..., 1]`, at least in fp32: root mean square, epsilon included, times sqrt(size).

    A hypotenuse, because that is two kernels and `rsqrt(mean(x^2) + epsilon)` five.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return torch.hypot(norm, norm.new_full((), (EPSILON * x.shape[-1]) ** 0.5))


@dataclass
class Turn:
    """Rotation of normalised queries and keys `[..., H, K]` by their positions, the learned gains included."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, angles: Tensor, gain_HK: Tensor) -> "Turn":
        """Args:
        angles: `[..., K / 2]` of the tokens.
        gain_HK: what every head's normalised queries or keys are multiplied by.
        """
        half = angles.shape[-1]
        gain_HK = gain_HK * gain_HK.shape[-1] ** 0.5  # of vectors of length one, not of root mean square one
        cos, sin = (torch.cat([x, x], dim=-1)[..., None, :].to(gain_HK.dtype) for x in (angles.cos(), angles.sin()))
        sin = sin * gain_HK.roll(half, dims=-1)
        return cls(cos * gain_HK, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1))

    def __getitem__(self, slots: slice) -> "Turn":
        return Turn(self.cos[slots], self.sin[slots])

    def clone(self) -> "Turn":
        return Turn(self.cos.clone(), self.sin.clone())

    def copy_(self, other: "Turn") -> None:
        self.cos.copy_(other.cos)
        self.sin.copy_(other.sin)

    def __call__(self, x: Tensor) -> Tensor:
        """Normalises and turns queries and keys `[..., H, K]`."""
        half = x.shape[-1] // 2
        x = x.to(self.cos.dtype)
        turned = x * self.cos
        turned[..., :half].addcmul_(x[..., half:], self.sin[..., :half])
        turned[..., half:].addcmul_(x[..., :half], self.sin[..., half:])
        return turned.div_(length_of(x))


def weigh(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, soft_cap: float | None) -> Tensor:
    """`attend` for queries that `query_scale` is part of already: q `[X, N, Lq, K]`, k and v `[X, Nkv, Lk, K]`.

    Args:
        mask: `[X, 1, Lq, Lk]`, true = seen.
    """
    heads, queries = q.shape[1:3]
    groups = heads // k.shape[1]
    if soft_cap is None:
        return F.scaled_dot_product_attention(q, k, v, mask, scale=1.0, enable_gqa=groups > 1)
    q = q.unflatten(1, (k.shape[1], groups)).flatten(2, 3)
    logits = (q @ k.transpose(-2, -1)).to(torch.promote_types(q.dtype, torch.float32))
    logits = logits.tanh_().mul_(soft_cap)
    if mask is not None:
        logits = logits.unflatten(2, (groups, queries))
        logits = logits.masked_fill_(~mask.unsqueeze(2), float("-inf")).flatten(2, 3)
    out = logits.softmax(dim=-1).to(v.dtype) @ v
    return out.unflatten(2, (groups, queries)).flatten(1, 2)


def banded_mask(
    segment_BT: Tensor | None, length: int, window: int, device: torch.device, drafts: bool = False
) -> Tensor:
    """`[B or 1, T, T]`: frame t sees the frames t - window + 1 .. t of its own segment.

    Args:
        drafts: the second half of the frames are drafts of the first half. A draft sees what its frame sees, and
            instead of that frame itself; nothing else sees it.
    """
    if drafts:
        half = length // 2
        real = banded_mask(None if segment_BT is None else segment_BT[:, :half], half, window, device)
        itself = torch.eye(half, dtype=torch.bool, device=device).expand_as(real)
        of_frames = torch.cat([real, torch.zeros_like(real)], dim=2)
        return torch.cat([of_frames, torch.cat([real & ~itself, itself], dim=2)], dim=1)
    frame_T = torch.arange(length, device=device)
    age_TT = frame_T[:, None] - frame_T[None, :]
    mask = ((age_TT >= 0) & (age_TT < window))[None]
    return mask if segment_BT is None else mask & (segment_BT[:, :, None] == segment_BT[:, None, :])
