"""How much arithmetic a pass takes: the floating-point operations of its matrix products, counted from the sizes.

A product of `[n, k]` and `[k, m]` counts as 2 n k m. Counted is what is computed, also where a mask hides it
afterwards, but nothing twice: what activation checkpointing or a fused attention kernel computes again in the backward
pass is not part of it. Embeddings, norms, rotations and softmax are no products and count as nothing. The tests compare
this with torch's own count, to the last operation.

Divided by the time that it takes, and by the rate at which the same machine multiplies large matrices, this is the
model FLOPs utilisation (MFU). Masks are not taken off, so a short clip in a wide window looks a little better than it
is: attention over T frames of a window counts T x T.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from dreamer4.agent import HeadsConfig
from dreamer4.distributions import logits_of
from dreamer4.dynamics import DynamicsConfig
from dreamer4.shortcut import ShortcutConfig, bootstrapped_rows
from dreamer4.tokenizer import TokenizerConfig
from dreamer4.transformer import TransformerConfig


@dataclass(frozen=True)
class Flops:
    """Of one pass over a batch: of its forward part, and of the gradients of weights and inputs."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)

    @property
    def total(self) -> int:
        return self.forward + self.backward


def linear(tokens: int, inputs: int, outputs: int, first: bool = False) -> Flops:
    """A linear layer. The first one's inputs are data, which no gradient is computed for."""
    forward = 2 * tokens * inputs * outputs
    return Flops(forward, forward if first else 2 * forward)


def mlp(tokens: int, sizes: Sequence[int], first: bool = False) -> Flops:
    """Linear layers one after the other, from the width of `sizes[0]` to that of the last, as `dreamer4.heads.Mlp`."""
    layers = list(pairwise(sizes))
    return sum((linear(tokens, *layer, first and not i) for i, layer in enumerate(layers)), Flops())


def attention(groups: int, length: int, width: int) -> Flops:
    """`groups` times attention of `length` tokens to each other: logits, and the weighted sum, of all heads."""
    forward = 2 * 2 * groups * length * length * width
    return Flops(forward, 2 * forward)


@cache
def transformer(config: TransformerConfig, batch: int, length: int, slots: int) -> Flops:
    """`batch` rows of `length` frames of `slots` tokens."""
    tokens, width = batch * length * slots, config.width
    every = (
        linear(tokens, width, (config.heads + 2 * config.kv_heads) * config.head_size)
        + linear(tokens, width, width)
        + linear(tokens, width, 2 * config.hidden)
        + linear(tokens, config.hidden, width)
    )
    space, time = attention(batch * length, slots, width), attention(batch * slots, length, width)
    total = Flops()
    for index in range(config.depth):
        total += every + (time if (index + 1) % config.time_every == 0 else space)
    return total


def tokenizer(config: TokenizerConfig, batch: int, length: int) -> Flops:
    """Encoder and decoder on `batch` clips of `length` frames, without a perceptual network."""
    frames, slots = batch * length, config.patches + config.latents
    return (
        linear(frames * config.patches, config.values, config.width, first=True)
        + transformer(config.transformer(config.encoder_depth), batch, length, slots)
        + linear(frames * config.latents, config.width, config.channels)
        + linear(frames * config.latents, config.channels, config.width)
        + transformer(config.transformer(config.decoder_depth), batch, length, slots)
        + linear(frames * config.patches, config.width, config.values)
    )


def dynamics(config: DynamicsConfig, batch: int, length: int, agent: bool = False) -> Flops:
    """One pass of the world model over `batch` clips of `length` frames, with or without agent tokens."""
    frames = batch * length
    slots = config.world_slots + (config.agent_tokens if agent else 0)
    total = transformer(config.transformer(), batch, length, slots)
    for part in config.space.parts:
        inputs = 2 * part.size if part.kind == "binary" else part.size
        total += linear(frames, inputs, config.action_tokens * config.width, first=True)
    total += linear(frames * config.latents, config.channels, config.width, first=True)
    return total + linear(frames * config.latents, config.width, config.channels)


def heads(config: HeadsConfig, dynamics: DynamicsConfig, frames: int) -> Flops:
    """The heads of policy, reward and end on the features of `frames` frames."""
    outputs = [sum(logits_of(part) for part in dynamics.space.parts), config.bins, 1]
    trunk, total = [dynamics.feature_width, *[config.hidden] * max(1, config.layers)], Flops()
    for size in outputs if config.continues else outputs[:2]:
        total += mlp(frames, [*trunk, config.offsets * size])
    return total


def shortcut_update(
    config: DynamicsConfig,
    shortcut: ShortcutConfig,
    batch: int,
    length: int,
    agent: HeadsConfig | None = None,
) -> int:
    """One update of the world model by shortcut forcing: the student, and two passes of the teacher without gradients.

    Args:
        agent: in finetuning, whose student has agent tokens and heads; the teacher has not.
    """
    frames = 2 * length if shortcut.drafts else length
    student = dynamics(config, batch, frames, agent=agent is not None)
    if agent is not None:
        student += heads(agent, config, batch * length)
    asked = len(range(batch)[bootstrapped_rows(shortcut, batch)])
    return student.total + 2 * dynamics(config, asked, frames).forward
