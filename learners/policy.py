"""Stage 4: the policy improves in imagination (paper, section 3.3, equations 10 and 11).

The learner owns the policy and value heads only. It reads rollouts, never the world model, so it can stand on another
machine than the workers that imagine.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dreamer4 import flops
from dreamer4.errors import ConfigError
from dreamer4.heads import PolicyHead, ScalarHead
from dreamer4.pmpo import PMPOCounts, pmpo_counts, pmpo_loss
from dreamer4.returns import lambda_returns
from dreamer4.rng import seed_of
from dreamer4.types import Rollout
from learners.learner import load_weights
from learners.optim import OptimConfig, Optimizer, check_finite
from learners.parallel import Parallel

RATES = "policy.policy_optim.lr or policy.value_optim.lr"  # the settings that a non-finite update points to


@dataclass(frozen=True)
class PolicyTraining:
    steps: int = 200
    batch: int = 64  # contexts per rollout
    rollouts_per_step: int = 1
    max_staleness: int = 1  # weights versions that a rollout may lag behind; 0 is synchronous
    discount: float = 0.997
    lam: float = 0.95  # [G]
    alpha: float = 0.5
    beta: float = 0.3
    warmup_steps: int = 10  # [G] value-only updates: before them all advantages would count as positive
    value_hidden: int = 256
    value_layers: int = 2
    bins: int = 255
    policy_optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=3e-5))
    value_optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4))
    save_every: int = 50

    def __post_init__(self) -> None:
        if not 0 < self.discount <= 1 or not 0 <= self.lam <= 1 or not 0 <= self.alpha <= 1:
            raise ConfigError(f"discount ({self.discount}), lam ({self.lam}) and alpha ({self.alpha}) are in [0, 1]")
        if self.beta < 0:
            raise ConfigError(f"beta must not be negative, got {self.beta}: it keeps the policy near the prior")
        if self.max_staleness < 0 or self.rollouts_per_step < 1:
            raise ConfigError(
                f"max_staleness ({self.max_staleness}) must be at least 0, rollouts_per_step "
                f"({self.rollouts_per_step}) at least 1"
            )


def stack(rollouts: list[Rollout], name: str, device: torch.device) -> Tensor:
    """One array of all rollouts as a tensor of its own: arrays from the object store are read-only."""
    return torch.from_numpy(np.concatenate([getattr(rollout, name) for rollout in rollouts])).to(device)


def survival(continue_BT: Tensor) -> Tensor:
    """Probability that the trajectory is still going on at frame t, `[B, H]`; 1 at the context's frame."""
    alive = torch.cumprod(continue_BT, dim=1)
    return torch.cat([torch.ones_like(alive[:, :1]), alive[:, :-1]], dim=1)


class PolicyLearner:
    """PMPO on imagined rollouts, one update per rollout batch.

    Args:
        policy: the behaviour-cloned head; a frozen copy of it becomes the prior.
        seed: of the value head's first weights.
        parallel: this process's place among several that learn together. All begin with the same weights, get equally
            many of an update's rollouts, and keep the same weights to the bit.
    """

    stage = "policy"

    def __init__(
        self,
        policy: PolicyHead,
        width: int,
        training: PolicyTraining,
        seed: int = 0,
        parallel: Parallel | None = None,
    ):
        self.policy, self.training, self.parallel = policy, training, parallel or Parallel()
        self.prior = copy.deepcopy(policy).requires_grad_(False)
        with torch.random.fork_rng(devices=[]):  # modules draw their weights from torch's global generator
            torch.manual_seed(seed_of(seed, self.stage, "value weights"))
            self.value = ScalarHead(width, training.value_hidden, training.value_layers, 1, training.bins)
        self.device = next(policy.parameters()).device
        self.value.to(self.device)
        self.policy_optimizer = Optimizer(training.policy_optim, [policy], training.steps)
        self.value_optimizer = Optimizer(training.value_optim, [self.value], training.steps)
        self.updates = 0

    def step(self, index: int, rollouts: list[Rollout]) -> dict[str, float]:
        """Update number `index`. Doing it again after it was applied changes nothing and returns no metrics.

        Of several processes each gets its own rollouts; losses, gradients and metrics are those of all together, the
        staleness alone is its own.

        Raises:
            NonFiniteError: a loss or gradient is not finite; nothing was updated. All processes raise it together.
        """
        if index < self.updates:
            return {}
        if index != self.updates:
            raise ValueError(f"update {index} follows {self.updates - 1}, not {index - 1}")
        rollouts = sorted(rollouts, key=lambda rollout: rollout.index)
        t = self.training
        features, actions, reward, keeps = (
            stack(rollouts, name, self.device) for name in ("features_BTM", "act_out_BTA", "reward_BT", "continue_BT")
        )
        weight = survival(keeps)

        with torch.no_grad():
            value = self.value.predict(features)
        returns = lambda_returns(reward, keeps, value, t.discount, t.lam)
        advantage = returns - value[:, :-1]
        counts = PMPOCounts(**self.parallel.total(pmpo_counts(advantage, weight)._asdict()))
        errors = self.value.loss(features[:, :-1], returns[..., None])[..., 0]
        value_loss = (errors * weight).sum() / counts.total

        distribution = self.policy(features[:, :-1]).at(0)
        divergence = distribution.kl(self.prior(features[:, :-1]).at(0))
        terms = pmpo_loss(distribution.log_prob(actions), advantage, divergence, weight, t.alpha, t.beta, counts)

        losses = self._total({"value": value_loss, "policy": terms.loss})
        check_finite(self.stage, index, losses, RATES)
        value_norm = self._gradients(self.value_optimizer, value_loss)
        policy_norm = self._gradients(self.policy_optimizer, terms.loss)
        check_finite(self.stage, index, {"value_norm": value_norm, "policy_norm": policy_norm}, RATES)
        self.value_optimizer.apply(index)
        if index >= t.warmup_steps:
            self.policy_optimizer.apply(index)
        self.updates += 1
        with torch.no_grad():
            means = {
                "imagined_return": discounted(reward, weight, t.discount).mean(),
                "value_start": value[:, 0].mean(),
                "ended": 1 - torch.cumprod(keeps, dim=1)[:, -1].mean(),
            }
            shares = {
                "positive": terms.positive,
                "negative": terms.negative,
                "kl": (divergence * weight).sum() / counts.total,  # in nats, without beta
                "advantage_positive": ((advantage >= 0) * weight).sum() / counts.total,
                "entropy": (distribution.entropy() * weight).sum() / counts.total,
                **{name: mean / self.parallel.world for name, mean in means.items()},
            }
            return {
                **losses,
                **self._total(shares),
                "policy_norm": policy_norm,
                "value_norm": value_norm,
                "staleness": float(np.mean([index - rollout.version for rollout in rollouts])),
            }

    def estimate_flops(self, rollouts: Sequence[Rollout]) -> int:
        """Floating-point operations of an update by this process's rollouts, as `dreamer4.flops` counts them."""
        batch, horizon = sum(len(rollout.reward_BT) for rollout in rollouts), rollouts[0].reward_BT.shape[1]
        policy, value = (flops.mlp(batch * horizon, m.mlp.sizes, first=True) for m in (self.policy, self.value))
        bootstrap = flops.mlp(batch * (horizon + 1), self.value.mlp.sizes)
        return policy.total + policy.forward + value.total + bootstrap.forward  # the prior passes forward only

    def _total(self, shares: dict[str, Tensor]) -> dict[str, float]:
        return {name: float(value) for name, value in self.parallel.total(shares).items()}

    def _gradients(self, optimizer: Optimizer, loss: Tensor) -> float:
        """Backward pass of all processes; returns the norm of the sum of their gradients before clipping."""
        optimizer.zero()
        loss.backward()
        self.parallel.sum_gradients(optimizer.parameters)
        return float(optimizer.clip())

    def policy_weights(self) -> dict[str, np.ndarray]:
        """A copy for the workers."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.policy.state_dict().items()}

    def module(self) -> nn.ModuleDict:
        return nn.ModuleDict({"policy": self.policy, "value": self.value, "prior": self.prior})

    def weights(self) -> dict[str, Tensor]:
        return self.module().state_dict()

    def state(self) -> dict[str, Any]:
        return {
            "updates": self.updates,
            "policy_optimizer": self.policy_optimizer.state(),
            "value_optimizer": self.value_optimizer.state(),
        }

    def restore(self, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        load_weights(self.module(), weights, self.stage)
        self.policy_optimizer.restore(state["policy_optimizer"])
        self.value_optimizer.restore(state["value_optimizer"])
        self.updates = state["updates"]


def discounted(reward_BT: Tensor, weight_BT: Tensor, discount: float) -> Tensor:
    """`[B]` discounted sum of imagined rewards, weighted by the probability that they are reached."""
    powers = discount ** torch.arange(reward_BT.shape[1], device=reward_BT.device)
    return (reward_BT * weight_BT * powers).sum(dim=1)
