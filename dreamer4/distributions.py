"""Policies over actions made of parts (paper, sections 3.2 and 3.3): every kind of part has its distribution.

All computations are in fp32. Noise comes from the generator's own device, so a sample is a function of logits and
generator wherever the logits are.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamer4.actions import ActionSpace, Part

LOG_STD = (-3.0, 1.0)  # range of a continuous action's log standard deviation [G]


class Distribution(Protocol):
    """Over one part of an action: actions are its columns `[..., part.columns]`, results `[...]` in nats."""

    def log_prob(self, action: Tensor) -> Tensor: ...
    def sample(self, generator: torch.Generator) -> Tensor: ...
    def mode(self) -> Tensor: ...
    def entropy(self) -> Tensor: ...
    def kl(self, other: Self) -> Tensor: ...


class Categorical:
    """One of n classes, from logits `[..., n]`; the action is its index `[..., 1]`."""

    def __init__(self, logits: Tensor):
        self.log_p = F.log_softmax(logits.float(), dim=-1)

    def log_prob(self, action: Tensor) -> Tensor:
        return self.log_p.gather(-1, action.long())[..., 0]

    def sample(self, generator: torch.Generator) -> Tensor:
        gumbel = -(-_uniform(self.log_p, generator).log()).log()
        return (self.log_p + gumbel).argmax(-1, keepdim=True).float()

    def mode(self) -> Tensor:
        return self.log_p.argmax(-1, keepdim=True).float()

    def entropy(self) -> Tensor:
        return -(self.log_p.exp() * self.log_p).sum(-1)

    def kl(self, other: Self) -> Tensor:
        return (self.log_p.exp() * (self.log_p - other.log_p)).sum(-1)


class Binary:
    """n independent keys, from logits `[..., n]`; the action is 0 or 1 per key."""

    def __init__(self, logits: Tensor):
        self.p = logits.float().sigmoid()
        self.log_p, self.log_not_p = F.logsigmoid(logits.float()), F.logsigmoid(-logits.float())

    def log_prob(self, action: Tensor) -> Tensor:
        return torch.where(action > 0.5, self.log_p, self.log_not_p).sum(-1)

    def sample(self, generator: torch.Generator) -> Tensor:
        return (_uniform(self.p, generator) < self.p).float()

    def mode(self) -> Tensor:
        return (self.p > 0.5).float()

    def entropy(self) -> Tensor:
        return -(self.p * self.log_p + (1 - self.p) * self.log_not_p).sum(-1)

    def kl(self, other: Self) -> Tensor:
        pressed, released = self.log_p - other.log_p, self.log_not_p - other.log_not_p
        return (self.p * pressed + (1 - self.p) * released).sum(-1)


class Gaussian:
    """n independent axes, from logits `[..., 2 n]`: means, then log deviations before they are bounded."""

    def __init__(self, logits: Tensor):
        self.mean, raw = logits.float().chunk(2, dim=-1)
        self.log_std = LOG_STD[0] + (LOG_STD[1] - LOG_STD[0]) * raw.sigmoid()

    def log_prob(self, action: Tensor) -> Tensor:
        distance = (action - self.mean) * (-self.log_std).exp()
        return (-0.5 * distance.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def sample(self, generator: torch.Generator) -> Tensor:
        noise = torch.randn(self.mean.shape, generator=generator, device=generator.device)
        return self.mean + self.log_std.exp() * noise.to(self.mean.device)

    def mode(self) -> Tensor:
        return self.mean

    def entropy(self) -> Tensor:
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl(self, other: Self) -> Tensor:
        log_ratio = self.log_std - other.log_std
        distance = (self.mean - other.mean) * (-other.log_std).exp()
        return 0.5 * ((2 * log_ratio).exp() + distance.square() - 1 - 2 * log_ratio).sum(-1)


KINDS: dict[str, Callable[[Tensor], Distribution]] = {
    "categorical": Categorical,
    "binary": Binary,
    "continuous": Gaussian,
}


def logits_of(part: Part) -> int:
    """How many logits the distribution of a part takes."""
    return 2 * part.size if part.kind == "continuous" else part.size


class ActionDistribution:
    """An action's parts, independent of each other: log-probability, entropy and KL are sums over the parts.

    Args:
        logits: per part `[..., logits_of(part)]`. The policy head's have an axis of offsets before the last one;
            `at` takes one of them.
    """

    def __init__(self, space: ActionSpace, logits: Sequence[Tensor]):
        self.space, self.logits = space, list(logits)
        self.parts = [KINDS[part.kind](x) for part, x in zip(space.parts, self.logits, strict=True)]

    def at(self, offset: int) -> "ActionDistribution":
        """The prediction of `act_out[t + offset]`, `[B, T, L, ...]` to `[B, T, ...]`."""
        return ActionDistribution(self.space, [x.select(-2, offset) for x in self.logits])

    def log_prob(self, actions_A: Tensor) -> Tensor:
        """`[...]` in nats, of actions `[..., A]`."""
        columns = self.space.split(actions_A)
        return _sum([part.log_prob(action) for part, action in zip(self.parts, columns, strict=True)])

    def sample(self, generator: torch.Generator) -> Tensor:
        """Actions `[..., A]`."""
        return torch.cat([part.sample(generator) for part in self.parts], dim=-1)

    def mode(self) -> Tensor:
        """The most probable actions `[..., A]`."""
        return torch.cat([part.mode() for part in self.parts], dim=-1)

    def entropy(self) -> Tensor:
        """`[...]` in nats."""
        return _sum([part.entropy() for part in self.parts])

    def kl(self, other: "ActionDistribution") -> Tensor:
        """KL(self || other), `[...]` in nats, closed form."""
        return _sum([part.kl(theirs) for part, theirs in zip(self.parts, other.parts, strict=True)])


def _sum(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum(0)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, device=generator.device).to(like.device)
