"""Losses of different size made comparable by running root-mean-square estimates (paper, section 3.2)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class RmsNormaliser(nn.Module):
    """Divides every loss by the running RMS of its past values, L / rms; call `update`, then `scale`.

    The first value initialises the estimate. The estimate has a floor relative to the largest one seen, because a
    loss on its way to 0 would otherwise get ever larger gradients. The estimates are buffers, so they are part of the
    checkpoint.

    Args:
        names: the losses, in the order of the buffers.
        decay: of the mean square, per update [G].
        floor: smallest divisor as a share of the largest RMS seen [G].
    """

    rms: Tensor
    largest: Tensor

    def __init__(self, names: Sequence[str], decay: float = 0.99, floor: float = 0.1):
        super().__init__()
        self.names, self.decay, self.floor = tuple(names), decay, floor
        self.register_buffer("rms", torch.zeros(len(self.names)))  # 0 = no value seen yet
        self.register_buffer("largest", torch.zeros(len(self.names)))

    @torch.no_grad()
    def update(self, losses: Mapping[str, Tensor]) -> None:
        """Takes in the losses of one step, scalars. With several ranks: their mean over the ranks, so all agree."""
        for name, loss in losses.items():
            index = self.names.index(name)
            square, known = loss.float().square(), self.rms[index]
            mean_square = torch.where(known > 0, torch.lerp(square, known.square(), self.decay), square)
            self.rms[index] = mean_square.sqrt()
            self.largest[index] = torch.maximum(self.largest[index], self.rms[index])

    def scale(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every loss divided by its estimate; no gradient flows through the estimate. Unchanged before any update."""
        divisor = torch.maximum(self.rms, self.floor * self.largest)
        divisor = torch.where(divisor > 0, divisor, 1.0)
        return {name: loss / divisor[self.names.index(name)] for name, loss in losses.items()}
