"""Heads on agent features: which targets they get, what features can know, and which rows are imitated."""

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from factories import MIXED_SPACE, random_clip, tiny_dynamics, tiny_heads
from torch import Tensor

from dreamer4.actions import ActionSpace
from dreamer4.agent import Heads, HeadsConfig, head_losses, masked_mean
from dreamer4.dynamics import Dynamics
from dreamer4.errors import ConfigError
from dreamer4.heads import mtp_targets
from dreamer4.types import Clip

ACTIONS = 3


def features_of(dynamics: Dynamics, clip: Clip, leak: bool = False) -> Tensor:
    """Features of clean-enough latents; with `leak`, block t wrongly holds the action chosen at frame t."""
    assert clip.latents_BTSD is not None
    level, step = (torch.full((clip.batch, clip.length), index) for index in (7, 3))
    action, known = (clip.act_out_BTA, clip.act_out_known_BT) if leak else (clip.act_in_BTA, clip.act_in_known_BT)
    output = dynamics(clip.latents_BTSD, level, step, action, known, clip.segment_BT, clip.task_BT)
    assert output.features_BTM is not None
    return output.features_BTM


def clip_with_rewards(seed: int) -> Clip:
    """Independent random actions; the reward on arrival is the bin that the action that led there points at."""
    clip = random_clip(16, 6, seed=seed)
    reward = (clip.act_in_BTA[..., 0] - 1) * (math.e - 1)
    return replace(clip, reward_BT=torch.where(clip.reward_known_BT, reward, 0.0))


def test_features_do_not_know_the_action_to_be_chosen():
    """Invariant 39: h_t is the same to the bit whatever is chosen at frame t; h_(t+1) is not."""
    dynamics, clip = tiny_dynamics(window=8), random_clip(2, 6)
    before = features_of(dynamics, clip)
    act_out, act_in = clip.act_out_BTA.clone(), clip.act_in_BTA.clone()
    act_out[:, 3] = act_in[:, 4] = (act_out[:, 3] + 1) % ACTIONS
    after = features_of(dynamics, replace(clip, act_out_BTA=act_out, act_in_BTA=act_in))
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-4)


class Trained:
    """Dynamics and heads after a short training on fresh random clips, and what they know about a new one."""

    def __init__(self, leak: bool):
        self.leak = leak
        self.dynamics = tiny_dynamics(depth=2, time_every=2)
        self.heads = tiny_heads(self.dynamics, offsets=2)
        for head in (self.heads.policy, self.heads.reward):
            torch.nn.init.zeros_(head.mlp.output.weight)
        parameters = [*self.dynamics.parameters(), *self.heads.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=5e-3)
        for step in range(160):
            clip = clip_with_rewards(seed=step)
            losses = head_losses(self.heads, features_of(self.dynamics, clip, leak), clip)
            (losses["policy"] + losses["reward"]).backward()
            optimizer.step()
            optimizer.zero_grad()

    @torch.no_grad()
    def accuracy(self) -> float:
        clip = clip_with_rewards(seed=10_000)
        mode = self.heads.policy(features_of(self.dynamics, clip, self.leak)).at(0).mode()
        right = (mode == clip.act_out_BTA)[..., 0]
        return masked_mean(right.float(), clip.act_out_known_BT).item()

    @torch.no_grad()
    def reward_loss(self, offset: int) -> float:
        """Nats per known reward of frame t + offset."""
        clip = clip_with_rewards(seed=10_000)
        targets, mask = mtp_targets(clip.reward_BT, clip.reward_known_BT, clip.segment_BT, 2)
        loss = self.heads.reward.loss(features_of(self.dynamics, clip), targets)
        return masked_mean(loss[..., offset], mask[..., offset]).item()


@pytest.fixture(scope="module")
def honest() -> Trained:
    return Trained(leak=False)


def test_random_actions_cannot_be_cloned(honest: Trained):
    """Invariant 39: behaviour cloning of independent random actions stays at chance."""
    assert honest.accuracy() < 0.5


def test_an_action_that_leaks_into_its_own_block_is_cloned_at_once():
    """Invariant 39, negative control."""
    assert Trained(leak=True).accuracy() > 0.95


def test_the_reward_of_the_action_that_led_here_is_visible_and_the_next_one_is_not(honest: Trained):
    """Invariant 40: three rewards that are equally likely cost ln 3 = 1.10 nats to whoever doesn't know."""
    assert honest.reward_loss(offset=0) < 0.1
    assert honest.reward_loss(offset=1) > 1.0


def test_targets_are_those_of_the_frames_ahead():
    """Invariant 38 at the level of the losses: heads that know act_out[t + n] and reward[t + n] have no loss."""
    clip = random_clip(1, 5)
    clip = replace(
        clip,
        act_out_BTA=torch.tensor([2.0, 0, 1, 2, 0])[None, :, None],
        reward_BT=torch.arange(5.0)[None],
    )
    heads = tiny_heads(tiny_dynamics(), offsets=3)
    seen: dict[str, Tensor] = {}

    class Spy:
        def __call__(self, features: Tensor) -> "Spy":
            return self

        def log_prob(self, actions: Tensor) -> Tensor:
            seen["action"] = actions
            return torch.zeros(actions.shape[:-1])

        def loss(self, features: Tensor, targets: Tensor) -> Tensor:
            seen["reward"] = targets
            return torch.zeros(targets.shape)

    spy = Spy()
    object.__setattr__(heads, "_modules", {**heads._modules, "policy": spy, "reward": spy, "continues": None})
    head_losses(heads, torch.zeros(1, 5, 16), clip)
    # The last frame has no action and the first one no reward; 0 stands where there is no target.
    assert seen["action"][0, ..., 0].tolist() == [[2, 0, 1], [0, 1, 2], [1, 2, 0], [2, 0, 0], [0, 0, 0]]
    assert seen["reward"][0].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 0], [4, 0, 0]]


def gradients(heads: Heads, features: Tensor, clip: Clip, cloned_B: Tensor | None = None) -> Mapping[str, Tensor]:
    """Gradient of every loss with respect to the features."""
    features = features.detach().requires_grad_()
    losses = head_losses(heads, features, clip, cloned_B)
    return {name: torch.autograd.grad(loss, features, retain_graph=True)[0] for name, loss in losses.items()}


def test_only_the_cloned_rows_teach_the_policy_and_all_rows_teach_the_rest():
    """Invariant 41."""
    dynamics, clip = tiny_dynamics(), random_clip(4, 6)
    heads, features = tiny_heads(dynamics), features_of(dynamics, clip)
    found = gradients(heads, features, clip, torch.tensor([False, True, False, True]))
    rows = {name: gradient.abs().amax(dim=(1, 2)) > 0 for name, gradient in found.items()}
    assert rows["policy"].tolist() == [False, True, False, True]
    assert rows["reward"].all() and rows["continue"].all()


def test_no_cloned_row_means_no_gradient_and_no_nan():
    """Invariant 41: zeroing the relevant half removes all behaviour cloning."""
    dynamics, clip = tiny_dynamics(), random_clip(4, 6)
    heads, features = tiny_heads(dynamics), features_of(dynamics, clip)
    none = torch.zeros(4, dtype=torch.bool)
    assert head_losses(heads, features, clip, none)["policy"].item() == 0
    assert gradients(heads, features, clip, none)["policy"].abs().max() == 0


def test_numbers_that_are_not_known_never_reach_a_loss():
    """Invariant 38: neither actions at last frames nor rewards at first frames, even where they are no numbers."""
    dynamics = tiny_dynamics()
    clip = random_clip(2, 6, segment_BT=torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]]))
    heads, features = tiny_heads(dynamics), features_of(dynamics, clip)
    spoiled = replace(
        clip,
        act_out_BTA=torch.where(clip.act_out_known_BT[..., None], clip.act_out_BTA, torch.nan),
        reward_BT=torch.where(clip.reward_known_BT, clip.reward_BT, torch.nan),
    )
    for name, gradient in gradients(heads, features, spoiled).items():
        assert torch.equal(gradient, gradients(heads, features, clip)[name])


def test_a_mean_counts_true_places_only():
    values = torch.tensor([1.0, 5.0, torch.nan])
    assert masked_mean(values, torch.tensor([True, True, False])).item() == 3
    assert masked_mean(values, torch.tensor([False, False, False])).item() == 0


def test_heads_without_continues_have_no_such_loss():
    dynamics, clip = tiny_dynamics(), random_clip(2, 4)
    losses = head_losses(tiny_heads(dynamics, continues=False), features_of(dynamics, clip), clip)
    assert losses.keys() == {"policy", "reward"}


@pytest.mark.parametrize("space", [ActionSpace.discrete(4), MIXED_SPACE])
def test_losses_are_fp32_and_near_under_autocast(space: ActionSpace):
    dynamics, clip = tiny_dynamics(actions=space.to_json()), random_clip(2, 6, space)
    heads, features = tiny_heads(dynamics), features_of(dynamics, clip).detach()
    expected = head_losses(heads, features, clip)
    with torch.autocast("cpu", torch.bfloat16):
        losses = head_losses(heads, features, clip)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected[name].item(), rel=0.05)


def test_a_fresh_policy_is_uniform_and_fresh_rewards_are_zero():
    heads, features = Heads(HeadsConfig(), 16, ActionSpace.discrete(4)), torch.randn(2, 3, 16)
    assert torch.equal(heads.reward.predict(features), torch.zeros(2, 3))
    log_prob = heads.policy(features).at(0).log_prob(torch.zeros(2, 3, 1))
    assert torch.allclose(log_prob.exp(), torch.full((2, 3), 0.25))


def test_no_offset_is_refused():
    with pytest.raises(ConfigError, match=r"heads\.offsets must be at least 1, got 0"):
        HeadsConfig(offsets=0)
