"""Numbers as classes: the symexp two-hot distributions of reward and value heads (paper, section 3.3).

The form is Dreamer 3's: a number becomes weights on its two neighbouring bins, interpolated in plain space, and a
distribution becomes its mean. So a stochastic number is predicted without bias, at any scale.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamer4.errors import ConfigError


def symexp(x: Tensor) -> Tensor:
    """`sign(x) (exp|x| - 1)`."""
    return x.sign() * x.abs().expm1()


class TwoHot(nn.Module):
    """Exponentially spaced bins; encodes numbers `[...]`, decodes logits `[..., bins]`.

    Args:
        bins: odd, so that one centre is 0.
        limit: the centres are `symexp` of `bins` steps in [-limit, limit]; numbers beyond the ends are clipped.
    """

    centres: Tensor

    def __init__(self, bins: int = 255, limit: float = 20.0):
        super().__init__()
        if bins < 3 or bins % 2 == 0:
            raise ConfigError(f"bins must be odd and at least 3, so that one of them is 0; got {bins}")
        positive = symexp(torch.linspace(0, limit, bins // 2 + 1, dtype=torch.float64)[1:]).float()
        centres = torch.cat([-positive.flip(0), torch.zeros(1), positive])
        self.register_buffer("centres", centres, persistent=False)

    def _neighbours(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Index of the bin at or below x, and the weight of the bin above."""
        x = x.float().contiguous().clamp(self.centres[0], self.centres[-1])
        below = (torch.searchsorted(self.centres, x, right=True) - 1).clamp_max(len(self.centres) - 2)
        low, high = self.centres[below], self.centres[below + 1]
        return below, (x - low) / (high - low)

    def encode(self, x: Tensor) -> Tensor:
        """`[..., bins]` weights that sum to 1, at most two of them not 0."""
        below, weight = self._neighbours(x)
        encoded = torch.zeros(*x.shape, len(self.centres), device=x.device)
        encoded.scatter_(-1, below[..., None], 1 - weight[..., None])
        return encoded.scatter_(-1, below[..., None] + 1, weight[..., None])

    def loss(self, logits: Tensor, x: Tensor) -> Tensor:
        """Cross entropy `[...]` of logits `[..., bins]` with the encoded target; no gradient through the target."""
        below, weight = self._neighbours(x.detach())
        log_probs = F.log_softmax(logits.float(), dim=-1)
        at_below = log_probs.gather(-1, below[..., None])[..., 0]
        at_above = log_probs.gather(-1, below[..., None] + 1)[..., 0]
        return -torch.lerp(at_below, at_above, weight)

    def decode(self, logits: Tensor) -> Tensor:
        """Mean `[...]` of the distribution; mirrored bins are paired, so that a uniform one gives exactly 0."""
        half = len(self.centres) // 2
        probs = F.softmax(logits.float(), dim=-1)
        surplus = probs[..., half + 1 :] - probs[..., :half].flip(-1)
        return (surplus * self.centres[half + 1 :]).sum(-1)
