"""A stream's passes through the transformer: as `Transformer.forward` on the whole history, at the cost of one frame.

What differs from the pass of training is only what need not be computed: keys and values of earlier frames come from
the cache, slots whose outputs nobody reads are left out, and slots that see less than others are computed apart
instead of with a mask. Inference only.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamer4.attention import Turn, length_of, query_scale, weigh
from dreamer4.cache import TimeCache

if TYPE_CHECKING:
    from dreamer4.transformer import Attention, Layer, RMSNorm, Transformer

# Which slots of a frame see which: pairs of (queries, keys), in the order of the slots.
Sight = Sequence[tuple[slice, slice]]


def gains(attention: "Attention") -> Tensor:
    """`[H, K]`: what normalised queries and then keys are multiplied by, the scale of the logits included."""
    size, cap = attention.config.head_size, attention.config.soft_cap
    q_gain, k_gain = (norm.gain.to(torch.promote_types(norm.gain.dtype, torch.float32)) for norm in attention.norms)
    q_HK = (q_gain * query_scale(size, cap)).expand(attention.sizes[0] // size, -1)
    return torch.cat([q_HK, k_gain.expand(attention.kv_heads, -1)]).detach()


def project(attention: "Attention", x: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
    """Queries `[X, L, N, K]`, keys and values `[X, L, Nkv, K]` of tokens `[X, L, M]`."""
    size = attention.config.head_size
    turned, v = attention.qkv(x).split([sum(attention.sizes[:2]), attention.sizes[2]], dim=-1)
    qk = turn(turned.unflatten(-1, (-1, size))).to(v.dtype)
    heads = attention.sizes[0] // size
    return qk[..., :heads, :], qk[..., heads:, :], v.unflatten(-1, (-1, size))


def through_space(layer: "Layer", x_XSM: Tensor, turn: Turn, sight: Sight, out: slice) -> Tensor:
    """Slots `out` behind a space layer, of frames `[X, S, M]`."""
    attention = layer.attention
    q, k, v = (part.transpose(1, 2) for part in project(attention, normalised(layer.attention_norm, x_XSM), turn))
    attended = []
    for queries, keys in sight:
        own = slice(max(queries.start, out.start), min(queries.stop, out.stop))
        if own.start < own.stop:
            seen = k[:, :, keys], v[:, :, keys]
            attended.append(weigh(q[:, :, own], *seen, None, attention.config.soft_cap))
    merged = attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)
    return feed_forward(layer, x_XSM[:, out] + attention.merge(merged))


def through_time(
    layer: "Layer",
    x_BTSM: Tensor,
    turn: Turn,
    mask: Tensor | None,
    memory: Tensor,
    seen: slice,
    here: slice,
    out: slice,
) -> tuple[Tensor, Tensor, Tensor]:
    """Slots `out` behind a time layer, and the keys and values `[S, B, Nkv, T, K]` of the slots that came in, `here`.

    Args:
        mask: of `TimeCache.mask` for a pass of one frame, of `TimeCache.long_mask` for others.
        memory: the layer's, of `TimeCache`.
        seen: its places that are read; if the first one is, the frame's own keys are put there, else they are appended.
    """
    attention = layer.attention
    tokens = project(attention, normalised(layer.attention_norm, x_BTSM), turn)
    q, k, v = (part.permute(2, 0, 3, 1, 4) for part in tokens)  # [S, B, N, T, K]
    local = slice(out.start - here.start, out.stop - here.start)
    if out.start == out.stop:
        return x_BTSM[:, :, local], k, v
    if seen.start == 0:
        memory[0, here, :, :, :1], memory[1, here, :, :, :1] = k, v
        keys, values = memory[:, out, :, :, seen].unbind()
    else:
        past = memory[:, out, :, :, seen].to(v.dtype)
        keys, values = (torch.cat(parts, dim=-2) for parts in zip(past.unbind(), (k[local], v[local]), strict=True))
    if mask is not None:
        mask = mask.expand(keys.shape[0], *mask.shape).flatten(0, 1)
    q = q[local]
    attended = weigh(q.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), mask, attention.config.soft_cap)
    attended = attended.unflatten(0, q.shape[:2]).permute(1, 3, 0, 2, 4).flatten(3)
    return feed_forward(layer, x_BTSM[:, :, local] + attention.out(attended)), k, v


def feed_forward(layer: "Layer", x: Tensor) -> Tensor:
    gate, value = layer.mlp.up(normalised(layer.mlp_norm, x)).chunk(2, dim=-1)
    return x + layer.mlp.down(F.silu(gate).mul_(value))


def normalised(norm: "RMSNorm", x: Tensor) -> Tensor:
    """As the module does it; on CPUs, where torch makes six kernels of it, in fewer."""
    if x.device.type != "cpu" or x.dtype != norm.gain.dtype or x.dtype not in (torch.float32, torch.float64):
        return norm(x)
    return (x / length_of(x)).mul_(norm.gain * x.shape[-1] ** 0.5)


def needed(time_layers: Sequence[bool], wanted: slice, slots: int, commit: bool) -> list[slice]:
    """The slots that have to come out of every layer, so that the `wanted` ones come out of the last.

    Slots of a space layer's input are all read. A time layer reads the slots that it puts out, and, where its keys are
    to be remembered, all others.
    """
    outputs, everything = [wanted], slice(0, slots)
    for is_time in reversed(time_layers[1:]):
        outputs.append(outputs[-1] if is_time and not commit else everything)
    return outputs[::-1]


def through_all(
    transformer: "Transformer",
    x_BTSM: Tensor,
    space_turns: Sequence[Turn],
    time_turns: Sequence[Turn],
    mask: Tensor | None,
    memories: Sequence[Tensor],
    sight: Sight,
    seen: slice,
    outputs: Sequence[slice],
    space: Callable[..., Any] = through_space,
    time: Callable[..., Any] = through_time,
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """All layers: the outputs of the last one, normalised, and what every time layer may remember.

    Args:
        outputs: of `needed`.
        space, time: the two kinds of layers, or the same, compiled; the other arguments are theirs.
    """
    batch, length, slots = x_BTSM.shape[:3]
    here, new, turns = slice(0, slots), [], iter(space_turns)
    layers = cast("list[Layer]", list(transformer.layers))
    for layer, is_time, out in zip(layers, transformer.is_time, outputs, strict=True):
        if is_time:
            x_BTSM, k, v = time(layer, x_BTSM, time_turns[len(new)], mask, memories[len(new)], seen, here, out)
            new.append((k, v))
        else:
            x_BTSM = space(layer, x_BTSM.flatten(0, 1), next(turns), sight, out).unflatten(0, (batch, length))
        here = out
    return normalised(transformer.norm, x_BTSM), new


@torch.no_grad()
def follow(
    transformer: "Transformer",
    x_BTSM: Tensor,
    sight: Sight,
    wanted: slice,
    segment_BT: Tensor | None,
    cache: TimeCache,
    commit: bool,
) -> Tensor:
    """The outputs of slots `wanted`, normalised, of the next frames of a batch of streams.

    Args:
        x_BTSM: their tokens, of all the cache's slots or of the first ones.
        sight: which slots see which.
        segment_BT: segment 0 continues what the cache holds, others see their own frames only.
        commit: whether the frames are remembered.
    """
    length, slots = x_BTSM.shape[1:3]
    one = length == 1 and segment_BT is None
    turns = cache.turns if one else cache.time_turns(length)
    mask = cache.mask() if one else cache.long_mask(segment_BT, length)
    seen = cache.seen() if one else slice(1, cache.seen().stop)
    layers = (cache.layers if one else None) or through_all
    space_turns = [turn[:slots] for turn in cache.space_turns]
    outputs = needed(transformer.is_time, wanted, slots, commit)
    x_BTSM, new = layers(transformer, x_BTSM, space_turns, turns, mask, cache.memory, sight, seen, outputs)
    if commit:
        for index, (k, v) in enumerate(new):
            cache.write(index, k, v)
        cache.advance(segment_BT, length)
    return x_BTSM
