"""PMPO: policy improvement from the signs of the advantages alone (paper, section 3.3, equation 11)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class PMPOCounts(NamedTuple):
    """|D+|, |D-| and N of a batch, scalars. Summed over the ranks, they make the loss that of the whole batch."""

    positive: Tensor
    negative: Tensor
    total: Tensor


@dataclass(frozen=True)
class PMPOLoss:
    """The loss and its three terms, scalars: `loss = positive + negative + kl`, with all weights applied."""

    loss: Tensor
    positive: Tensor
    negative: Tensor
    kl: Tensor


def pmpo_counts(advantage_BT: Tensor, weight_BT: Tensor | None = None) -> PMPOCounts:
    """Counts the steps of positive advantage (0 included), of negative advantage, and all; weighted if weights are."""
    weight = torch.ones_like(advantage_BT) if weight_BT is None else weight_BT.detach()
    good = advantage_BT >= 0
    return PMPOCounts((weight * good).sum(), (weight * ~good).sum(), weight.sum())


def pmpo_loss(
    log_prob_BT: Tensor,
    advantage_BT: Tensor,
    kl_BT: Tensor,
    weight_BT: Tensor | None = None,
    alpha: float = 0.5,
    beta: float = 0.3,
    counts: PMPOCounts | None = None,
) -> PMPOLoss:
    """`(1 - alpha) mean ln p over D-  -  alpha mean ln p over D+  +  beta mean KL(policy || prior)`.

    Averages go over batch and time; a set without members contributes 0. The negative term has no lower bound on fixed
    data: take one step per rollout and sample again.

    Args:
        log_prob_BT: of the sampled actions under the policy in training.
        advantage_BT: only its sign matters; no gradient flows through it.
        kl_BT: of the policy to the frozen prior, in this direction.
        weight_BT: share of a step, 0 beyond the imagined end of an episode (the product of the continues before it).
        alpha: weight of the positive set.
        beta: weight of the prior.
        counts: of the batch over all ranks, None = of these tensors. The sum of the ranks' losses is then the loss of
            the whole batch, so gradients are summed and not averaged.
    """
    counts = pmpo_counts(advantage_BT, weight_BT) if counts is None else counts
    weight = torch.ones_like(advantage_BT) if weight_BT is None else weight_BT.detach()
    good = advantage_BT >= 0
    positive = -alpha * _share(weight * good * log_prob_BT, counts.positive)
    negative = (1 - alpha) * _share(weight * ~good * log_prob_BT, counts.negative)
    kl = beta * _share(weight * kl_BT, counts.total)
    return PMPOLoss(positive + negative + kl, positive, negative, kl)


def _share(terms: Tensor, count: Tensor) -> Tensor:
    """Sum of the terms per count; 0 of nothing is 0."""
    return terms.sum() / torch.where(count > 0, count, 1.0)
