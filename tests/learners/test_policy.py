"""PMPO on hand-made rollouts: no world model is needed, the learner reads features only."""

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import lively, normal
from states import assert_equal, copied, same
from torch.utils.flop_counter import FlopCounterMode

from dreamer4.actions import ActionSpace
from dreamer4.checkpoint import Checkpoints
from dreamer4.errors import CheckpointError, ConfigError, NonFiniteError
from dreamer4.heads import PolicyHead
from dreamer4.pmpo import pmpo_counts, pmpo_loss
from dreamer4.returns import lambda_returns
from dreamer4.rng import generator
from dreamer4.types import Rollout
from learners import policy as policy_module
from learners.optim import OptimConfig
from learners.policy import PolicyLearner, PolicyTraining, discounted, survival

WIDTH, HORIZON, BATCH = 6, 5, 4
SPACE = ActionSpace.discrete(3)
FAST = OptimConfig(lr=1e-2, warmup_steps=0)
TRAINING = PolicyTraining(
    steps=20, warmup_steps=0, value_hidden=8, value_layers=1, bins=21, policy_optim=FAST, value_optim=FAST
)


def policy_head(seed: int = 0) -> PolicyHead:
    return lively(PolicyHead(WIDTH, 8, 1, 2, SPACE), seed).train()


def make_learner(training: PolicyTraining = TRAINING, seed: int = 0, value_seed: int = 0) -> PolicyLearner:
    learner = PolicyLearner(policy_head(seed), WIDTH, training, value_seed)
    lively(learner.value, seed + 100)  # its output starts at 0, which hides mistakes
    return learner


def rollout(index: int, version: int | None = None) -> Rollout:
    draw = generator("rollout", index)
    return Rollout(
        features_BTM=torch.randn((BATCH, HORIZON + 1, WIDTH), generator=draw).numpy(),
        act_out_BTA=SPACE.random(BATCH * HORIZON, draw).unflatten(0, (BATCH, HORIZON)).numpy(),
        log_prob_BT=np.zeros((BATCH, HORIZON), np.float32),
        reward_BT=torch.randn((BATCH, HORIZON), generator=draw).numpy(),
        continue_BT=torch.rand((BATCH, HORIZON), generator=draw).numpy(),
        task_B=np.zeros(BATCH, np.int64),
        index=index,
        version=index if version is None else version,
    )


def everything(learner: PolicyLearner) -> object:
    return copied({"weights": learner.weights(), "state": learner.state()})


def test_the_estimate_is_what_torch_counts():
    learner, rollouts = make_learner(replace(TRAINING, value_layers=2)), [rollout(0), rollout(1)]
    with FlopCounterMode(display=False) as counter:
        learner.step(0, rollouts)
    assert learner.estimate_flops(rollouts) == counter.get_total_flops() > learner.estimate_flops(rollouts[:1])


def read_only(one: Rollout) -> Rollout:
    arrays = {name: value.copy() for name, value in vars(one).items() if isinstance(value, np.ndarray)}
    for array in arrays.values():
        array.flags.writeable = False
    return replace(one, **arrays)


def test_resuming_is_exact(tmp_path):
    """Six updates equal three, a checkpoint on disk, and three by a new learner from other first weights."""
    training = replace(TRAINING, warmup_steps=1)
    whole, first = make_learner(training), make_learner(training)
    rows = [whole.step(i, [rollout(i)]) for i in range(6)]
    early = [first.step(i, [rollout(i)]) for i in range(3)]
    Checkpoints(tmp_path).save(3, first.weights(), first.state(), {"lr": 1})
    saved = Checkpoints(tmp_path).load(config={"lr": 1})
    second = make_learner(training, seed=5)
    second.restore(saved.weights, saved.state)
    assert_equal(rows, early + [second.step(i, [rollout(i)]) for i in range(3, 6)])
    assert_equal(everything(whole), everything(second))


def test_resuming_without_the_moments_is_not_exact():
    """Negative control of the test above."""
    whole, second = make_learner(), make_learner()
    for i in range(3):
        whole.step(i, [rollout(i)])
    state = {**whole.state(), "policy_optimizer": {}}
    second.restore(copied(whole.weights()), state)
    whole.step(3, [rollout(3)]), second.step(3, [rollout(3)])
    assert not same(everything(whole), everything(second))


def test_a_checkpoint_of_another_model_is_refused():
    learner = make_learner()
    weights = copied(learner.weights())
    del weights["prior.mlp.output.bias"]
    with pytest.raises(CheckpointError, match=r"policy checkpoint.*'prior\.mlp\.output\.bias'"):
        learner.restore(weights, learner.state())


def test_the_value_head_starts_from_the_seed_and_not_from_the_global_generator():
    policy = policy_head()

    def first_weights(seed):
        return dict(PolicyLearner(policy, WIDTH, TRAINING, seed).value.state_dict())

    state = torch.random.get_rng_state()
    weights = first_weights(1)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(3)
    assert_equal(weights, first_weights(1))
    assert not same(weights, first_weights(2))


def test_an_update_that_was_applied_is_not_applied_again():
    learner = make_learner()
    assert learner.step(0, [rollout(0)])
    before = everything(learner)
    assert learner.step(0, [rollout(0)]) == {}
    assert learner.step(0, [rollout(7)]) == {}
    assert_equal(before, everything(learner))


def test_an_update_too_far_ahead_is_refused():
    learner = make_learner()
    with pytest.raises(ValueError, match="update 1 follows"):
        learner.step(1, [rollout(1)])


def test_rollouts_may_arrive_in_any_order():
    one, other = make_learner(), make_learner()
    batch = [rollout(i) for i in range(4)]
    metrics = one.step(0, batch)
    assert metrics == other.step(0, [batch[i] for i in (2, 0, 3, 1)])
    assert_equal(everything(one), everything(other))


def test_every_rollout_of_an_update_counts():
    """Negative control of the test above."""
    one, other = make_learner(), make_learner()
    one.step(0, [rollout(0), rollout(1)]), other.step(0, [rollout(0), rollout(2)])
    assert not same(everything(one), everything(other))


def test_read_only_arrays_are_neither_refused_nor_written():
    plain, frozen = rollout(0), read_only(rollout(0))
    learner, other = make_learner(), make_learner()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns about tensors on memory that isn't writable
        metrics = learner.step(0, [frozen])
    assert metrics == other.step(0, [plain])
    assert_equal(vars(rollout(0)), vars(frozen))


def test_staleness_is_how_many_versions_the_rollouts_lag():
    learner = make_learner()
    fresh = learner.step(0, [rollout(0, version=0)])
    stale = learner.step(1, [rollout(1, version=0)])
    mixed = learner.step(2, [rollout(2, version=2), rollout(3, version=1)])
    assert [row["staleness"] for row in (fresh, stale, mixed)] == [0.0, 1.0, 0.5]


def test_weights_for_workers_are_a_copy():
    learner = make_learner()
    weights = learner.policy_weights()
    before = {name: value.copy() for name, value in weights.items()}
    learner.step(0, [rollout(0)])
    assert_equal(before, weights)
    assert not same(before, learner.policy_weights())


@pytest.mark.parametrize("name", ["features_BTM", "reward_BT", "continue_BT"])
def test_a_non_finite_rollout_changes_nothing(name):
    learner = make_learner()
    learner.step(0, [rollout(0)])
    before = everything(learner)
    bad = getattr(rollout(1), name).copy()
    bad[0, 1] = np.nan
    with pytest.raises(NonFiniteError, match=r"^policy: 'value' is nan at step 1;.*policy_optim\.lr"):
        learner.step(1, [replace(rollout(1), **{name: bad})])
    assert_equal(before, everything(learner))


def test_a_non_finite_gradient_of_the_policy_keeps_the_value_head_as_well():
    learner = make_learner()
    before = everything(learner)
    learner.policy_optimizer.clip = lambda: torch.tensor(float("inf"))
    with pytest.raises(NonFiniteError, match="'policy_norm' is inf at step 0"):
        learner.step(0, [rollout(0)])
    assert_equal(before, everything(learner))
    assert learner.updates == 0


def test_only_policy_and_value_change():
    """Invariant 49."""
    learner = make_learner()
    before = everything(learner)["weights"]
    learner.step(0, [rollout(0)])
    after = learner.weights()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"policy", "value"}


def test_the_prior_is_the_first_policy_and_takes_no_gradient():
    """Invariant 49."""
    learner = make_learner()
    assert_equal(dict(policy_head().state_dict()), dict(learner.prior.state_dict()))
    learner.step(0, [rollout(0)])
    assert all(p.grad is None and not p.requires_grad for p in learner.prior.parameters())


def test_the_policy_loss_does_not_reach_the_value_head_nor_the_other_way_round():
    """Invariant 49: advantages and returns carry no gradient."""

    def after(**changes):
        learner = make_learner(replace(TRAINING, **changes))
        learner.step(0, [rollout(0)])
        return learner

    base, other_policy_loss = after(), after(alpha=0.9, beta=3.0)
    assert_equal(dict(base.value.state_dict()), dict(other_policy_loss.value.state_dict()))
    assert not same(dict(base.policy.state_dict()), dict(other_policy_loss.policy.state_dict()))
    other_value_step = after(value_optim=replace(FAST, lr=1e-4))
    assert_equal(dict(base.policy.state_dict()), dict(other_value_step.policy.state_dict()))
    assert not same(dict(base.value.state_dict()), dict(other_value_step.value.state_dict()))


def test_the_policy_waits_until_the_value_head_is_warm():
    learner = make_learner(replace(TRAINING, warmup_steps=2))
    start = everything(learner)["weights"]
    for index in range(2):
        learner.step(index, [rollout(index)])
    warm = everything(learner)["weights"]
    learner.step(2, [rollout(2)])
    end = learner.weights()
    policy = [name for name in start if name.startswith("policy.")]
    assert_equal({n: start[n] for n in policy}, {n: warm[n] for n in policy})
    assert not same({n: start[n] for n in policy}, {n: end[n] for n in policy})
    value = [name for name in start if name.startswith("value.")]
    assert not same({n: start[n] for n in value}, {n: warm[n] for n in value})


def test_the_bootstrap_value_is_that_of_the_last_imagined_frame(monkeypatch):
    """Invariant 51: H actions and rewards, H + 1 values, and v[H] belongs to h[H]."""
    seen = {}

    def spy(reward, keeps, value, discount, lam):
        seen.update(reward=reward, value=value)
        return torch.zeros_like(reward)

    monkeypatch.setattr(policy_module, "lambda_returns", spy)
    learner, one = make_learner(), rollout(0)
    expected = learner.value.predict(torch.from_numpy(one.features_BTM)).detach()
    learner.step(0, [one])
    assert seen["reward"].shape == (BATCH, HORIZON) and seen["value"].shape == (BATCH, HORIZON + 1)
    assert torch.equal(seen["value"], expected) and not seen["value"].requires_grad
    assert not torch.allclose(expected[:, -1], expected[:, -2])


def test_the_advantage_of_an_action_is_its_return_over_the_value_where_it_was_chosen(monkeypatch):
    """R[t] - v[t], both of the frame at which action t was chosen; the next frame's value would not do."""
    seen = []

    def spy(log_prob, advantage, *rest):
        seen.append(advantage)
        return pmpo_loss(log_prob, advantage, *rest)

    monkeypatch.setattr(policy_module, "pmpo_loss", spy)
    learner, one = make_learner(), rollout(0)
    reward, keeps = torch.from_numpy(one.reward_BT), torch.from_numpy(one.continue_BT)
    value = learner.value.predict(torch.from_numpy(one.features_BTM)).detach()
    returns = lambda_returns(reward, keeps, value, TRAINING.discount, TRAINING.lam)
    learner.step(0, [one])
    assert torch.equal(seen[0], returns - value[:, :-1]) and not seen[0].requires_grad
    assert not torch.equal(seen[0] >= 0, returns >= value[:, 1:])


def test_both_heads_follow_their_own_schedule():
    slow = OptimConfig(lr=1.0, warmup_steps=4)
    learner = make_learner(replace(TRAINING, policy_optim=replace(slow, lr=0.01), value_optim=replace(slow, lr=0.02)))
    for index in range(3):
        learner.step(index, [rollout(index)])
        rates = [o.adamw.param_groups[0]["lr"] for o in (learner.policy_optimizer, learner.value_optimizer)]
        assert rates == pytest.approx([0.01 * (index + 1) / 4, 0.02 * (index + 1) / 4])


def test_steps_beyond_an_imagined_end_do_not_count():
    """What follows a continue of 0 is of no consequence for either head."""
    ended, other = rollout(0), rollout(1)
    keeps = np.ones_like(ended.continue_BT)
    keeps[:, 2] = 0.0
    ended = replace(ended, continue_BT=keeps)

    def with_tail(one, start):
        arrays = {"features_BTM": start, "act_out_BTA": start, "reward_BT": start}
        for name, frame in arrays.items():
            array = getattr(one, name).copy()
            array[:, frame:] = getattr(other, name)[:, frame:]
            one = replace(one, **{name: array})
        return one

    learners = [make_learner() for _ in range(3)]
    for learner, batch in zip(learners, (ended, with_tail(ended, 3), with_tail(ended, 2)), strict=True):
        learner.step(0, [batch])
    weights = [dict(learner.weights()) for learner in learners]
    assert all(torch.allclose(weights[0][n], weights[1][n], atol=1e-6) for n in weights[0])
    assert not all(torch.allclose(weights[0][n], weights[2][n], atol=1e-6) for n in weights[0]), "the control"


def test_survival_is_the_product_of_the_continues_before():
    keeps = torch.tensor([[0.5, 0.5, 0.0, 1.0]])
    assert survival(keeps).tolist() == [[1.0, 0.5, 0.25, 0.0]]


def test_discounted_counts_rewards_that_are_reached():
    reward, weight = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    assert discounted(reward, weight, 0.5).tolist() == [2.0]


def test_kl_is_reported_in_nats_whatever_beta():
    """It tells how far the policy has gone from the prior, also where nothing holds it there."""
    free, held = (make_learner(replace(TRAINING, beta=beta)) for beta in (0.0, 0.3))
    for learner in (free, held):
        lively(learner.policy, 9)
    metrics = [learner.step(0, [rollout(0)])["kl"] for learner in (free, held)]
    assert metrics[0] == metrics[1] > 0.01


def test_two_half_batches_with_the_counts_of_all_make_the_gradient_of_the_whole():
    """Invariant 52; the control: each half's own counts make another one."""
    features, advantage = normal(8, HORIZON, WIDTH), normal(8, HORIZON, seed=1)
    advantage[:4] -= 0.7  # halves with different shares of positive advantages
    actions = SPACE.random(8 * HORIZON, generator("actions")).unflatten(0, (8, HORIZON))
    weight = torch.rand((8, HORIZON), generator=generator("weight"))
    policy, prior = policy_head(), policy_head(1)

    def gradient(rows, counts):
        total = 0.0
        for part in rows:
            one, anchor = policy(features[part]).at(0), prior(features[part]).at(0)
            terms = one.log_prob(actions[part]), advantage[part], one.kl(anchor), weight[part]
            total = total + pmpo_loss(*terms, counts=counts).loss
        grads = torch.autograd.grad(total, list(policy.parameters()), allow_unused=True)
        return torch.cat([grad.flatten() for grad in grads if grad is not None])

    whole, halves = [slice(0, 8)], [slice(0, 4), slice(4, 8)]
    expected, counts = gradient(whole, None), pmpo_counts(advantage, weight)
    assert torch.allclose(gradient(halves, counts), expected, atol=1e-6)
    assert not torch.allclose(gradient(halves, None) / 2, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"discount": 1.5}, "discount"),
        ({"alpha": -0.1}, "alpha"),
        ({"lam": 2.0}, "lam"),
        ({"beta": -1.0}, "beta"),
        ({"max_staleness": -1}, "max_staleness"),
        ({"rollouts_per_step": 0}, "rollouts_per_step"),
    ],
)
def test_impossible_settings_are_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=message):
        PolicyTraining(**change)


class Corridor:
    """An exact world of five places in a row; a step right of the last one is worth 1, left of the first one 0.

    Both end it. Features are the place, so heads are tables; the expected return of a policy is solved, not sampled.
    """

    places, space = 5, ActionSpace.discrete(2)

    def imagine(self, policy: PolicyHead, index: int, horizon: int = 8, batch: int = 64, sign: float = 1.0) -> Rollout:
        draw = generator("corridor", index)
        place = torch.randint(self.places, (batch,), generator=draw)
        features, actions, rewards, keeps = [self.features(place)], [], [], []
        for _ in range(horizon):
            with torch.no_grad():
                action = policy(features[-1][:, None]).at(0).sample(draw)[:, 0]
            place = place + 2 * action[:, 0].long() - 1
            rewards.append(sign * (place == self.places).float())
            keeps.append(((place >= 0) & (place < self.places)).float())
            place = place.clamp(0, self.places - 1)
            features.append(self.features(place))
            actions.append(action)
        reward, keep = torch.stack(rewards, 1), torch.stack(keeps, 1)
        return Rollout(
            torch.stack(features, 1).numpy(),
            torch.stack(actions, 1).numpy(),
            np.zeros_like(reward.numpy()),
            reward.numpy(),
            keep.numpy(),
            np.zeros(batch, np.int64),
            index,
            index,
        )

    def features(self, place_B: torch.Tensor) -> torch.Tensor:
        return torch.eye(self.places)[place_B] * self.places**0.5

    def expected_return(self, policy: PolicyHead, discount: float = 0.997) -> float:
        """Mean over the places, from v = P(right) discount v' + ..., a linear system."""
        with torch.no_grad():
            logits = policy(self.features(torch.arange(self.places))[:, None]).at(0).logits[0][:, 0]
        right = logits.softmax(-1)[:, 1].double()
        system, gain = torch.eye(self.places, dtype=torch.float64), torch.zeros(self.places, dtype=torch.float64)
        for i in range(self.places):
            if i + 1 < self.places:
                system[i, i + 1] -= discount * right[i]
            else:
                gain[i] = right[i]
            if i > 0:
                system[i, i - 1] -= discount * (1 - right[i])
        return float(torch.linalg.solve(system, gain).mean())


def improved(beta: float, sign: float = 1.0, steps: int = 60) -> tuple[float, float]:
    """Expected returns before and after PMPO in the corridor, from a policy that mostly goes right or left evenly."""
    world = Corridor()
    head = lively(PolicyHead(world.places, 16, 1, 1, world.space), 3)
    torch.nn.init.zeros_(head.mlp.output.weight), torch.nn.init.zeros_(head.mlp.output.bias)
    training = PolicyTraining(
        steps=steps, beta=beta, warmup_steps=10, value_hidden=16, value_layers=1, policy_optim=FAST, value_optim=FAST
    )
    learner = PolicyLearner(head, world.places, training)
    before = world.expected_return(learner.policy)
    for index in range(steps):
        learner.step(index, [world.imagine(learner.policy, index, sign=sign)])
    return before, world.expected_return(learner.policy)


def test_pmpo_raises_the_return_above_the_priors_in_an_exact_world():
    """Invariant 53."""
    before, after = improved(beta=0.3)
    assert before == pytest.approx(0.5, abs=0.05)
    assert after > before + 0.2


def test_pmpo_lowers_the_return_where_rewards_are_negated():
    """Negative control of the test above: it is the reward that moves the policy."""
    before, after = improved(beta=0.3, sign=-1.0)
    assert after < before - 0.2


def test_a_huge_beta_keeps_the_policy_at_the_prior():
    """Invariant 53."""
    before, after = improved(beta=1e4)
    assert after == pytest.approx(before, abs=0.03)


def test_the_behaviour_cloned_head_is_improved_in_place_and_its_copy_kept():
    head = policy_head()
    before = copy.deepcopy(head.state_dict())
    learner = PolicyLearner(head, WIDTH, TRAINING)
    learner.step(0, [rollout(0)])
    assert learner.policy is head and not same(dict(before), dict(head.state_dict()))
    assert_equal(dict(before), dict(learner.prior.state_dict()))
