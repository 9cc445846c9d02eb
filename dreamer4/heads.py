"""Heads on agent-token features, and their targets over several frames (paper, section 3.3, equation 9).

Every head is a small MLP with one output layer per distance: offset n at frame t predicts frame t + n (multi-token
prediction). Output layers start at 0: uniform policy, reward and value 0, continue probability one half.
"""

import torch
from torch import Tensor, nn

from dreamer4.actions import ActionSpace
from dreamer4.distributions import ActionDistribution, logits_of
from dreamer4.transformer import RMSNorm, initialise_linears
from dreamer4.twohot import TwoHot


class Mlp(nn.Module):
    """`layers` hidden layers of Linear, RMSNorm, SiLU, and a linear output that starts at 0."""

    def __init__(self, width: int, hidden: int, layers: int, outputs: int):
        super().__init__()
        self.sizes = [width, *[hidden] * max(1, layers), outputs]
        blocks: list[nn.Module] = []
        for inputs in self.sizes[:-2]:
            blocks += [nn.Linear(inputs, hidden, bias=False), RMSNorm(hidden), nn.SiLU()]
        self.trunk = nn.Sequential(*blocks)
        self.output = nn.Linear(hidden, outputs)
        initialise_linears(self.trunk)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.trunk(x))


class ScalarHead(nn.Module):
    """A number as symexp two-hot classes: the reward head, and with one offset the value head."""

    def __init__(self, width: int, hidden: int, layers: int, offsets: int, bins: int):
        super().__init__()
        self.offsets = offsets
        self.mlp = Mlp(width, hidden, layers, offsets * bins)
        self.two_hot = TwoHot(bins)

    def forward(self, features_BTM: Tensor) -> Tensor:
        """Logits `[B, T, offsets, bins]`."""
        return self.mlp(features_BTM).unflatten(-1, (self.offsets, -1))

    def predict(self, features_BTM: Tensor, offset: int = 0) -> Tensor:
        """The mean `[B, T]` of the number at frame t + offset."""
        return self.two_hot.decode(self(features_BTM)[..., offset, :])

    def loss(self, features_BTM: Tensor, targets_BTL: Tensor) -> Tensor:
        """Cross entropy `[B, T, offsets]` with the targets, through which no gradient flows."""
        return self.two_hot.loss(self(features_BTM), targets_BTL)


class PolicyHead(nn.Module):
    """Distribution of the actions chosen at frame t and at the frames that follow."""

    def __init__(self, width: int, hidden: int, layers: int, offsets: int, space: ActionSpace):
        super().__init__()
        self.offsets, self.space = offsets, space
        self.sizes = [logits_of(part) for part in space.parts]
        self.mlp = Mlp(width, hidden, layers, offsets * sum(self.sizes))

    def forward(self, features_BTM: Tensor) -> ActionDistribution:
        """Logits of every part `[B, T, offsets, size]`; `.at(0)` is the policy."""
        logits = self.mlp(features_BTM).unflatten(-1, (self.offsets, -1))
        return ActionDistribution(self.space, logits.split(self.sizes, dim=-1))


class ContinueHead(nn.Module):
    """Probability that a frame is not terminal."""

    def __init__(self, width: int, hidden: int, layers: int, offsets: int):
        super().__init__()
        self.mlp = Mlp(width, hidden, layers, offsets)

    def forward(self, features_BTM: Tensor) -> Tensor:
        """Logits `[B, T, offsets]`."""
        return self.mlp(features_BTM)

    def predict(self, features_BTM: Tensor, offset: int = 0) -> Tensor:
        """The probability `[B, T]` for frame t + offset."""
        return self(features_BTM)[..., offset].float().sigmoid()


def mtp_targets(values_BT: Tensor, known_BT: Tensor, segment_BT: Tensor, offsets: int) -> tuple[Tensor, Tensor]:
    """What offset n at frame t has to predict: the value of frame t + n.

    Args:
        values_BT: `[B, T, ...]`, per frame.
        known_BT: false where there is no value, such as the reward of a first frame.
        segment_BT: episode within the row; an episode doesn't predict the next one.

    Returns:
        Targets `[B, T, offsets, ...]`, and mask `[B, T, offsets]`: false beyond the clip, in another segment, or not
        known. Targets are 0 there, so that no unknown number can reach a gradient.
    """
    length = known_BT.shape[1]
    frame_TL = torch.arange(length, device=known_BT.device)[:, None] + torch.arange(offsets, device=known_BT.device)
    inside_TL, frame_TL = frame_TL < length, frame_TL.clamp_max(length - 1)
    same_segment = segment_BT[:, frame_TL] == segment_BT[:, :, None]
    mask_BTL = inside_TL & known_BT[:, frame_TL] & same_segment
    mask = mask_BTL.reshape(mask_BTL.shape + (1,) * (values_BT.dim() - 2))
    return torch.where(mask, values_BT[:, frame_TL], 0), mask_BTL
