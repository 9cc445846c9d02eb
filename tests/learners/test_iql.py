"""Implicit Q-learning puts parts of recordings together, which cloning can't; on a chain whose values are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import lively
from resuming import assert_resume_is_exact, assert_steps_differ
from spread import iql
from worlds import World

from dreamer4.actions import ActionSpace, Part
from dreamer4.errors import ConfigError
from dreamer4.heads import PolicyHead
from dreamer4.types import Clip
from learners.iql import IQLModel, IQLTraining, transitions

STAY, GO = 0, 1
LENGTH, DISCOUNT = 6, 0.9
TRAINING = IQLTraining(temperature=0.05, hidden=32, layers=1, target_rate=0.05)


def chain_clip(places: list[int], actions: list[int]) -> tuple[torch.Tensor, Clip]:
    """One-hot places as features, and a recording of GO and STAY; the last place is worth 1 and terminal."""
    n, at = len(places), torch.tensor(places)
    reward = (at == LENGTH - 1).float()
    yes, zero = torch.ones(1, n, dtype=torch.bool), torch.zeros(1, n, dtype=torch.int64)
    known, out = yes.clone(), torch.tensor([*actions, 0]).float()[None, :, None]
    known[0, -1] = False
    return torch.eye(LENGTH)[at][None], Clip(out, yes, out, known, reward[None], yes, 1 - reward[None], zero, zero)


def dawdlers() -> tuple[torch.Tensor, Clip]:
    """Two recordings, each of which stays once at every place of one half, end to end as two segments."""
    first = [0, 0, 1, 1, 2, 2, 3, 4, 5], [STAY, GO, STAY, GO, STAY, GO, GO, GO]
    second = [0, 1, 2, 3, 3, 4, 4, 5], [GO, GO, GO, STAY, GO, STAY, GO]
    parts = [chain_clip(*first), chain_clip(*second)]
    clips = [{name: value for name, value in vars(clip).items() if value is not None} for _, clip in parts]
    joined = {name: torch.cat([clip[name] for clip in clips], dim=1) for name in clips[0]}
    segment = torch.tensor([[0] * 9 + [1] * 8])
    return torch.cat([x for x, _ in parts], 1), Clip(**{**joined, "segment_BT": segment})


def trained(training: IQLTraining, updates: int = 400) -> IQLModel:
    features, clip = dawdlers()
    torch.manual_seed(0)
    model = IQLModel(PolicyHead(LENGTH, 32, 1, 1, ActionSpace.discrete(2)), LENGTH, training)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(updates):
        optimizer.zero_grad()
        torch.stack(list(model.losses(features, clip, training, DISCOUNT).values())).sum().backward()
        optimizer.step()
        model.follow(training.target_rate)
    return model


def test_values_are_those_of_the_best_parts_and_the_policy_does_not_dawdle():
    places = torch.eye(LENGTH)[:-1]
    best = DISCOUNT ** np.arange(LENGTH - 2, -1, -1)
    model = trained(replace(TRAINING, expectile=0.98))
    assert model.value(places)[:, 0].detach().numpy() == pytest.approx(best, abs=0.05)
    assert (model.policy(places[None]).at(0).parts[0].log_p[0, :, GO].exp() > 0.8).all()
    assert (model.q[0](places).argmax(-1) == GO).all()
    mean = trained(replace(TRAINING, expectile=0.5, temperature=100.0))
    assert mean.value(places)[0, 0] < best[0] - 0.05, "control: the mean of what was recorded is worth less"
    assert (mean.policy(places[None]).at(0).parts[0].log_p[0, :, GO].exp() < 0.8).all(), "control: plain cloning"


def test_temperatures_share_the_values_and_the_lower_one_is_choosier():
    one, three = trained(TRAINING, 100), trained(replace(TRAINING, also=(0.01, 100.0)), 100)
    assert replace(TRAINING, also=(0.01, 100.0)).temperatures == {"": 0.05, "@0.01": 0.01, "@100": 100.0}
    assert torch.equal(one.value(torch.eye(LENGTH)), three.value(torch.eye(LENGTH)))
    going = [policy(torch.eye(LENGTH)[:-1][None]).at(0).parts[0].log_p[0, :, GO].mean() for policy in three.policies]
    assert going[1] > going[0] > going[2]
    assert going[0] == one.policy(torch.eye(LENGTH)[:-1][None]).at(0).parts[0].log_p[0, :, GO].mean()


def test_transitions_end_with_the_episode():
    _, clip = dawdlers()
    assert transitions(clip)[0].tolist() == [True] * 8 + [False] + [True] * 7


def test_truth_beyond_a_terminal_frame_is_not_bootstrapped():
    """A terminal frame's value must not matter: nothing follows it."""
    features, clip = chain_clip([4, 5], [GO])
    torch.manual_seed(0)
    model = IQLModel(PolicyHead(LENGTH, 8, 1, 1, ActionSpace.discrete(2)), LENGTH, TRAINING)
    lively(model)
    model.target.load_state_dict(model.q.state_dict())
    error = model.losses(features, clip, TRAINING, DISCOUNT)["q"]
    q = torch.stack([q(features[:, 0])[0, GO] for q in model.q])
    assert torch.allclose(error, (q - 1).square().sum())
    going_on = replace(clip, continue_BT=torch.ones_like(clip.continue_BT))
    assert not torch.allclose(model.losses(features, going_on, TRAINING, DISCOUNT)["q"], error), "negative control"


def test_only_the_heads_learn_and_the_target_follows(world: World):
    learner = iql(world)
    before = {name: value.clone() for name, value in learner.weights().items()}
    frozen = {name: value.clone() for name, value in learner.dynamics.state_dict().items()}
    learner.step(0)
    after = learner.weights()
    for part in ("policies", "value", "q", "target"):
        assert any(not torch.equal(after[name], before[name]) for name in after if name.startswith(f"{part}."))
    assert all(torch.equal(value, frozen[name]) for name, value in learner.dynamics.state_dict().items())
    assert all(parameter.grad is None for parameter in learner.model.target.parameters())


def test_resuming_is_exact(world: World, tmp_path):
    assert_resume_is_exact(lambda weights: iql(world, weights), tmp_path)
    assert_steps_differ(lambda weights: iql(world, weights))


def test_spaces_of_several_parts_are_refused():
    space = ActionSpace((Part("keys", "binary", 2), Part("mouse", "categorical", 3)))
    with pytest.raises(ConfigError, match="one discrete choice"):
        IQLModel(PolicyHead(4, 8, 1, 1, space), 4, TRAINING)


@pytest.mark.parametrize(
    "setting",
    [{"expectile": 1.0}, {"expectile": 0.4}, {"temperature": 0.0}, {"also": (0.3, -1.0)}, {"also": (0.1,)}],
)
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ConfigError, match="expectile"):
        IQLTraining(**setting)
