import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import lively, tiny_dynamics, tiny_heads
from states import assert_equal, copied, same
from worlds import World

from actors.imagination import ImaginationWorker
from dreamer4.imagination import ImaginationConfig, WorldStream, imagine
from dreamer4.rng import generator
from dreamer4.shortcut import ShortcutConfig
from dreamer4.types import Rollout, Weights
from learners.policy import PolicyLearner, PolicyTraining

BATCH, CONTEXT, HORIZON = 5, 3, 4
CONFIG = ImaginationConfig(sampling_steps=2, horizon=HORIZON, context=CONTEXT)
SHORTCUT = ShortcutConfig(k_max=8)


@pytest.fixture
def make(world: World):
    def build(seed: int = 7, clips: str = "contexts", **changes) -> ImaginationWorker:
        dynamics = tiny_dynamics()
        heads = tiny_heads(dynamics)
        arguments = {"config": CONFIG, "batch": BATCH, "seed": seed, **changes}
        return ImaginationWorker(dynamics, heads, heads.policy, world.clips(clips), SHORTCUT, **arguments)

    return build


def other_weights(version: int, seed: int = 5) -> Weights:
    """Read-only, as they come from the object store."""
    policy = lively(tiny_heads(tiny_dynamics()).policy, seed)
    arrays = {name: value.numpy().copy() for name, value in policy.state_dict().items()}
    for array in arrays.values():
        array.flags.writeable = False
    return Weights(version, arrays)


def assert_rollouts_equal(one: Rollout, other: Rollout) -> None:
    assert_equal(vars(one), vars(other))


def test_a_rollout_is_a_function_of_seed_index_and_weights(make):
    """In any order, repeated, and in a new worker, so that a lost one may be imagined again anywhere."""
    worker = make()
    first = [worker.rollout(i) for i in (0, 1, 2)]
    again = [worker.rollout(i) for i in (2, 0, 1)]
    for index, repeated in zip((2, 0, 1), again, strict=True):
        assert_rollouts_equal(first[index], repeated)
        assert_rollouts_equal(first[index], make().rollout(index))


def test_seed_and_index_both_matter(make):
    """Negative control of the test above."""
    base = make().rollout(0)
    assert not same(base.features_BTM, make().rollout(1).features_BTM)
    assert not same(base.features_BTM, make(seed=8).rollout(0).features_BTM)
    assert not same(base.features_BTM, make(clips="others").rollout(0).features_BTM)


def test_a_new_worker_given_the_same_weights_imagines_the_same(make):
    worker, weights = make(), other_weights(3)
    worker.rollout(0)
    worker.set_weights(other_weights(2, seed=6))
    assert_rollouts_equal(worker.rollout(4, weights), make().rollout(4, weights))


def test_the_global_generator_is_neither_used_nor_touched(make):
    worker = make()
    state = torch.random.get_rng_state()
    one = worker.rollout(0)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(5)
    assert_rollouts_equal(one, worker.rollout(0))


def test_shapes_are_those_of_one_rollout_per_context(make):
    """Invariant 51: H actions, rewards and continues, H + 1 features."""
    one = make().rollout(6)
    width = tiny_dynamics().config.feature_width
    assert one.features_BTM.shape == (BATCH, HORIZON + 1, width)
    assert one.act_out_BTA.shape == (BATCH, HORIZON, 1)
    assert one.log_prob_BT.shape == one.reward_BT.shape == one.continue_BT.shape == (BATCH, HORIZON)
    assert one.task_B.shape == (BATCH,) and one.task_B.dtype == np.int64
    assert (one.index, one.version) == (6, 0)
    arrays = [value for name, value in vars(one).items() if name.endswith(("BT", "BTA", "BTM"))]
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in arrays)
    assert ((one.continue_BT >= 0) & (one.continue_BT <= 1)).all()


def test_contexts_are_windows_of_the_recordings(make, world):
    """The rollout's task is that of the context's last frame."""
    worker = make()
    clip = worker.context(2)
    assert (clip.batch, clip.length) == (BATCH, CONTEXT)
    assert_equal(vars(clip), vars(world.clips("contexts").batch(2, BATCH, CONTEXT)))
    assert np.array_equal(worker.rollout(2).task_B, clip.task_BT[:, -1].numpy())


def test_log_probabilities_are_those_of_the_recorded_features_and_actions(make):
    """Invariant 50; the control: those of other weights are not."""
    worker = make()
    one = worker.rollout(0, other_weights(1))

    def log_prob():
        features = torch.from_numpy(one.features_BTM[:, :-1])
        return worker.policy(features).at(0).log_prob(torch.from_numpy(one.act_out_BTA)).numpy()

    assert np.allclose(log_prob(), one.log_prob_BT, atol=1e-5)
    worker.set_weights(other_weights(2, seed=6))
    assert not np.allclose(log_prob(), one.log_prob_BT, atol=1e-3)


def test_rewards_and_continues_are_read_on_arrival(make):
    """Invariant 50: reward number t belongs to the features of frame t + 1."""
    worker = make()
    one = worker.rollout(0)
    features = torch.from_numpy(one.features_BTM)
    reward, keep = (head.predict(features).numpy() for head in (worker.heads.reward, worker.heads.continues))
    assert np.allclose(reward[:, 1:], one.reward_BT, atol=1e-5)
    assert np.allclose(keep[:, 1:], one.continue_BT, atol=1e-5)
    assert not np.allclose(reward[:, :-1], one.reward_BT, atol=1e-3)


def test_other_weights_choose_other_actions(make):
    worker = make()
    base = worker.rollout(0)
    assert worker.set_weights(other_weights(1)) == 1
    assert not np.array_equal(base.act_out_BTA, worker.rollout(0).act_out_BTA)


def test_the_same_weights_choose_the_same_actions(make):
    """Negative control of the test above: a new version alone changes nothing but its number."""
    worker = make()
    base = worker.rollout(0)
    policy = {name: value.numpy().copy() for name, value in worker.policy.state_dict().items()}
    later = worker.rollout(0, Weights(4, policy))
    assert later.version == 4
    assert_rollouts_equal(replace(later, version=0), base)


def test_the_weights_asked_for_are_used_older_ones_too(make):
    worker = make()
    versions = {v: other_weights(v, seed=v) for v in (1, 2)}
    expected = {v: make().rollout(0, weights) for v, weights in versions.items()}
    for version in (2, 1, 1, 2):
        one = worker.rollout(0, versions[version])
        assert one.version == version
        assert_rollouts_equal(one, expected[version])
    assert not np.array_equal(expected[1].act_out_BTA, expected[2].act_out_BTA)


def test_read_only_weights_are_neither_refused_nor_written(make):
    weights = other_weights(1)
    before = copy.deepcopy(weights.policy)
    worker = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns about tensors on memory that isn't writable
        worker.rollout(0, weights)
    with torch.no_grad():
        worker.policy.mlp.output.bias.add_(1)
    assert_equal(before, weights.policy)


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_weights_of_another_policy_are_refused(make, change):
    """Also a shape that would broadcast; a weight left out would silently stay old."""
    policy = dict(other_weights(1).policy)
    bias = policy.pop("mlp.output.bias")
    if change == "shape":
        policy["mlp.output.bias"] = bias[:1]
    worker = make()
    with pytest.raises(RuntimeError, match=r"mlp\.output\.bias"):
        worker.set_weights(Weights(1, policy))
    assert worker.version == 0


def test_the_worker_has_a_copy_of_the_policy(make):
    """A learner in the same process may train the head that it was given."""
    dynamics = tiny_dynamics()
    heads = tiny_heads(dynamics)
    worker = ImaginationWorker(dynamics, heads, heads.policy, None, SHORTCUT, CONFIG, BATCH, 7)
    before = copied(heads.policy.state_dict())
    worker.set_weights(other_weights(1))
    assert_equal(before, copied(heads.policy.state_dict()))
    assert not same(before, copied(worker.policy.state_dict()))


def test_imagining_changes_no_weights(make):
    """Invariant 49."""
    worker = make()
    before = [copied(module.state_dict()) for module in (worker.dynamics, worker.heads, worker.policy)]
    worker.rollout(0)
    assert_equal(before, [copied(module.state_dict()) for module in (worker.dynamics, worker.heads, worker.policy)])
    parameters = [p for module in (worker.dynamics, worker.heads, worker.policy) for p in module.parameters()]
    assert not any(p.requires_grad for p in parameters)


def actions_fed_to_the_world(monkeypatch, worker, index):
    fed = []
    generate = WorldStream.generate
    monkeypatch.setattr(
        WorldStream, "generate", lambda self, act_in, noise: (fed.append(act_in), generate(self, act_in, noise))[1]
    )
    one = worker.rollout(index)
    return torch.stack(fed, 1).numpy(), one


def test_the_world_gets_the_actions_that_were_chosen(make, monkeypatch):
    """Invariant 50; the negative control of the shuffled test."""
    fed, one = actions_fed_to_the_world(monkeypatch, make(), 0)
    assert np.array_equal(fed, one.act_out_BTA)


def test_the_shuffled_control_gives_the_world_another_rows_actions(make, monkeypatch):
    fed, one = actions_fed_to_the_world(monkeypatch, make(shuffle_actions=True), 0)
    assert np.array_equal(fed, np.roll(one.act_out_BTA, 1, axis=0))
    assert not np.array_equal(fed, one.act_out_BTA)
    plain = make().rollout(0)
    assert np.array_equal(plain.features_BTM[:, 0], one.features_BTM[:, 0]), "the contexts are the same"
    assert np.array_equal(plain.act_out_BTA[:, 0], one.act_out_BTA[:, 0]), "and so are the first choices"
    moved = (plain.features_BTM[:, 1] != one.features_BTM[:, 1]).any(-1)
    assert np.array_equal(moved, fed[:, 0, 0] != one.act_out_BTA[:, 0, 0]), "other actions, other frames"


def test_a_worker_dreams_what_imagine_does(make):
    worker = make()
    context, dream = worker.dream(3)
    expected = imagine(
        worker.dynamics, worker.heads, worker.policy, context, SHORTCUT, CONFIG, generator(7, "imagination", 3)
    )
    assert_equal(copied(vars(expected)), copied(vars(dream)))


def test_a_learner_and_a_worker_close_the_loop(make):
    """Weights go round: version n + 1 is what update n made, and the worker's next rollout says so."""
    worker = make()
    training = PolicyTraining(steps=4, warmup_steps=0, value_hidden=8, value_layers=1)
    head = tiny_heads(tiny_dynamics()).policy.train()
    learner = PolicyLearner(head, tiny_dynamics().config.feature_width, training)
    weights = Weights(0, learner.policy_weights())
    for step in range(3):
        one = worker.rollout(step, weights)
        assert one.version == step
        assert learner.step(step, [one])["staleness"] == 0.0
        weights = Weights(learner.updates, learner.policy_weights())
    assert worker.set_weights(weights) == 3
    assert_equal(copied(learner.policy.state_dict()), copied(worker.policy.state_dict()))
