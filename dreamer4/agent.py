"""The agent: heads on the features of agent tokens (paper, section 3.3, equation 9).

Policy, reward and continue heads predict the present and the next frames (multi-token prediction) from h_t. Their
losses are computed in the same noisy pass as the video loss, so that behaviour and world model share a representation.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamer4.actions import ActionSpace
from dreamer4.errors import ConfigError
from dreamer4.heads import ContinueHead, PolicyHead, ScalarHead, mtp_targets
from dreamer4.types import Clip


@dataclass(frozen=True)
class HeadsConfig:
    """Sizes of the MLP heads [G]; 8 offsets and 255 bins are the paper's [L]."""

    hidden: int = 256
    layers: int = 2
    offsets: int = 8
    bins: int = 255
    continues: bool = True  # a continue head, for environments with true terminal states

    def __post_init__(self) -> None:
        if self.offsets < 1:
            raise ConfigError(f"heads.offsets must be at least 1, got {self.offsets}")


class Heads(nn.Module):
    """Policy, reward and continue heads on features `[..., M]`. The value head belongs to `learners.policy`."""

    def __init__(self, config: HeadsConfig, width: int, space: ActionSpace):
        super().__init__()
        self.config = config
        sizes = (width, config.hidden, config.layers, config.offsets)
        self.policy = PolicyHead(*sizes, space)
        self.reward = ScalarHead(*sizes, config.bins)
        self.continues = ContinueHead(*sizes) if config.continues else None


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the true places; 0 where there are none, so that an empty half of a batch has no gradient."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp_min(1)


def head_targets(config: HeadsConfig, clip: Clip, cloned_B: Tensor | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """What the heads are to predict, by loss term: targets `[B, T, offsets, ...]`, and bool `[B, T, offsets]` where.

    Args:
        cloned_B: rows whose actions are imitated (the relevant half of the mixture); None = all.
    """
    offsets = config.offsets
    actions, mask = mtp_targets(clip.act_out_BTA, clip.act_out_known_BT, clip.segment_BT, offsets)
    if cloned_B is not None:
        mask = mask & cloned_B[:, None, None]
    rewards = mtp_targets(clip.reward_BT, clip.reward_known_BT, clip.segment_BT, offsets)
    targets = {"policy": (actions, mask), "reward": rewards}
    if config.continues:
        known = torch.ones_like(clip.reward_known_BT)
        targets["continue"] = mtp_targets(clip.continue_BT, known, clip.segment_BT, offsets)
    return targets


def head_losses(heads: Heads, features_BTM: Tensor, clip: Clip, cloned_B: Tensor | None = None) -> dict[str, Tensor]:
    """Equation 9: behaviour cloning, reward and continue terms, mean over the frames that have a target.

    Args:
        cloned_B: rows whose actions are imitated (the relevant half of the mixture); None = all.
    """
    targets = head_targets(heads.config, clip, cloned_B)
    actions, action_mask = targets["policy"]
    rewards, reward_mask = targets["reward"]
    losses = {
        "policy": masked_mean(-heads.policy(features_BTM).log_prob(actions), action_mask),
        "reward": masked_mean(heads.reward.loss(features_BTM, rewards), reward_mask),
    }
    if heads.continues is not None:
        continues, mask = targets["continue"]
        logits = heads.continues(features_BTM).float()
        errors = F.binary_cross_entropy_with_logits(logits, continues, reduction="none")
        losses["continue"] = masked_mean(errors, mask)
    return losses
