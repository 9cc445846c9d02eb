"""Offline RL without a world model's imagination: implicit Q-learning (Kostrikov et al., 2021) on frozen features.

The baseline that can put parts of several recordings together, as imagination can: values are bootstrapped from one
recorded transition to the next, and the policy clones the recorded actions, the better ones exponentially more.
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dreamer4 import flops
from dreamer4.agent import masked_mean
from dreamer4.data.clips import ClipSampler
from dreamer4.dynamics import Dynamics
from dreamer4.errors import ConfigError
from dreamer4.heads import Mlp, PolicyHead
from dreamer4.normalise import RmsNormaliser
from dreamer4.rng import generator
from dreamer4.shortcut import ShortcutConfig
from dreamer4.types import Clip
from learners.agent import context_features
from learners.learner import Learner
from learners.optim import OptimConfig
from learners.parallel import Unit
from learners.parts import WHOLE, Part

MOST = 100.0  # weight of one action, as in the paper


@dataclass(frozen=True)
class IQLTraining:
    steps: int = 2000
    batch: int = 32
    length: int = 8
    expectile: float = 0.9  # of the action values: 1/2 is their mean, 1 the best that was recorded
    temperature: float = 0.1  # in units of the return: actions weigh exp(advantage / temperature)
    also: tuple[float, ...] = ()  # further temperatures, each with a policy of its own; the values don't depend on them
    target_rate: float = 0.01  # at which the target of the bootstrap follows
    hidden: int = 256
    layers: int = 2
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3))
    save_every: int = 250

    def __post_init__(self) -> None:
        temperatures = (self.temperature, *self.also)
        if not 0.5 <= self.expectile < 1 or min(temperatures) <= 0 or len(set(temperatures)) < len(temperatures):
            raise ConfigError(
                f"iql_training.expectile ({self.expectile}) is in [0.5, 1), temperature ({self.temperature}) and also "
                f"({self.also}) are above 0, each another"
            )

    @property
    def temperatures(self) -> dict[str, float]:
        """By what the policy's name ends in: nothing for the first, `@0.003` and the like."""
        return {"": self.temperature, **{f"@{temperature:g}": temperature for temperature in self.also}}


class IQLModel(nn.Module):
    """Two action values and their targets, a state value, and a policy for every temperature.

    Raises:
        ConfigError: the policy's action space is not one discrete choice.
    """

    def __init__(self, policy: PolicyHead, width: int, training: IQLTraining):
        super().__init__()
        parts = policy.space.parts
        if len(parts) != 1 or parts[0].kind != "categorical":
            raise ConfigError("iql needs an action space of one discrete choice: leave 'iql' out of controls")
        sizes = (width, training.hidden, training.layers)
        self.policies, self.value = nn.ModuleList([policy]), Mlp(*sizes, 1)
        self.policies.extend(copy.deepcopy(policy) for _ in training.also)
        self.q = nn.ModuleList(Mlp(*sizes, parts[0].size) for _ in range(2))
        self.target = copy.deepcopy(self.q).requires_grad_(False)

    @property
    def policy(self) -> PolicyHead:
        """That of the first temperature."""
        policy = self.policies[0]
        assert isinstance(policy, PolicyHead)
        return policy

    def losses(self, features_BTM: Tensor, clip: Clip, training: IQLTraining, discount: float) -> dict[str, Tensor]:
        """Means over the transitions of a clip; see `transitions`."""
        now, action = features_BTM[:, :-1], clip.act_out_BTA[:, :-1]
        mask, index = transitions(clip), action.long()
        with torch.no_grad():
            best = torch.minimum(*(q(now).gather(-1, index)[..., 0] for q in self.target))
            reward, goes_on = clip.reward_BT[:, 1:], clip.continue_BT[:, 1:]
            bootstrap = reward + discount * goes_on * self.value(features_BTM[:, 1:])[..., 0]
        above = best - self.value(now)[..., 0]
        tilt = torch.where(above > 0, training.expectile, 1 - training.expectile)
        errors = [(q(now).gather(-1, index)[..., 0] - bootstrap).square() for q in self.q]
        return {
            "value": masked_mean(tilt * above.square(), mask),
            "q": masked_mean(torch.stack(errors).sum(0), mask),
            **{
                f"policy{name}": masked_mean(-weigh(above, temperature) * policy(now).at(0).log_prob(action), mask)
                for policy, (name, temperature) in zip(self.policies, training.temperatures.items(), strict=True)
            },
        }

    @torch.no_grad()
    def follow(self, rate: float) -> None:
        for mlp in self.target:  # sharded models give their shards back in a backward pass, which a target has not
            getattr(mlp, "reshard", lambda: None)()
        for ours, theirs in zip(self.target.parameters(), self.q.parameters(), strict=True):
            ours.mul_(1 - rate).add_(theirs, alpha=rate)


def weigh(advantage: Tensor, temperature: float) -> Tensor:
    """How much the action counts that was recorded."""
    return (advantage.detach() / temperature).exp().clamp(max=MOST)


def transitions(clip: Clip) -> Tensor:
    """Bool `[B, T - 1]`: frames whose action and following frame are known."""
    same = clip.segment_BT[:, 1:] == clip.segment_BT[:, :-1]
    return same & clip.act_out_known_BT[:, :-1] & clip.reward_known_BT[:, 1:]


class IQLLearner(Learner):
    """On all training episodes, over the features that act in the environment; starts from the cloned policy."""

    stage = "iql"

    def __init__(
        self,
        dynamics: Dynamics,
        model: IQLModel,
        training: IQLTraining,
        discount: float,
        shortcut: ShortcutConfig,
        clips: ClipSampler,
        seed: int,
    ):
        dynamics.requires_grad_(False)
        super().__init__(
            model,
            RmsNormaliser(["value", "q", *(f"policy{name}" for name in training.temperatures)]),
            training.optim,
            training.steps,
        )
        self.dynamics, self.model, self.training, self.discount = dynamics, model, training, discount
        self.shortcut, self.clips, self.seed = shortcut, clips, seed

    def losses(self, index: int, part: Part = WHOLE) -> dict[str, Tensor]:
        batch, length = self.training.batch, self.training.length
        device, rows = self.dynamics.latent_in.weight.device, part.rows(batch)
        clip = self.clips.batch(index, batch, length, rows.index).to(device)
        noise = generator(self.seed, self.stage, index)
        features_BTM = context_features(self.dynamics, clip, self.shortcut, noise, rows)
        losses = self.model.losses(features_BTM, clip, self.training, self.discount)
        if rows.whole:
            return losses
        everywhere = transitions(self.clips.batch(index, batch, length, contents=False))
        share = int(transitions(clip).sum()) / max(1, int(everywhere.sum()))
        return {name: loss * share for name, loss in losses.items()}

    def estimate_flops(self, index: int) -> int:
        batch, length = self.training.batch, self.training.length
        value, policy, policies = self.model.value, self.model.policy, len(self.model.policies)
        sizes = [*value.sizes[:-1], policy.space.parts[0].size], value.sizes, policy.mlp.sizes
        of_q, of_value, of_policy = (flops.mlp(batch * (length - 1), one, first=True) for one in sizes)
        features = flops.dynamics(self.dynamics.config, batch, length, agent=True).forward
        return (
            features + 2 * (of_q.total + of_q.forward) + of_value.total + of_value.forward + policies * of_policy.total
        )

    def step(self, index: int) -> dict[str, float]:
        metrics = super().step(index)
        self.model.follow(self.training.target_rate)
        return metrics

    def units(self) -> list[Unit]:
        mlps = [*(policy.mlp for policy in self.model.policies), self.model.value, *self.model.q, *self.model.target]
        return [Unit(self.dynamics), *(Unit(mlp) for mlp in mlps)]
