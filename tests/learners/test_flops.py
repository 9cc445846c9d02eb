"""The counted model of `dreamer4.flops` against what torch counts while a learner updates."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import MIXED_SPACE, random_clip, tiny_dynamics, tiny_heads, tiny_tokenizer
from torch.utils.flop_counter import FlopCounterMode
from worlds import World

from dreamer4 import flops
from dreamer4.shortcut import ShortcutConfig
from learners.agent import AgentLearner, AgentTraining, FilteredBCLearner, ScratchBCLearner
from learners.dynamics import DynamicsLearner, DynamicsTraining
from learners.iql import IQLLearner, IQLModel, IQLTraining
from learners.learner import Learner
from learners.parallel import Parallel, ParallelConfig
from learners.tokenizer import TokenizerLearner, TokenizerTraining

TRAINING = DynamicsTraining(steps=10, batch=4, length=3, long_length=6, long_batch=2, long_share=0.5)
SHORTCUT = ShortcutConfig(k_max=8)


def counted(learner: Learner, index: int) -> int:
    """By torch, of an update of one process."""
    with FlopCounterMode(display=False) as counter:
        learner.step(index)
    return counter.get_total_flops()


def dynamics_learner(world: World, shortcut: ShortcutConfig = SHORTCUT, **changes) -> DynamicsLearner:
    return DynamicsLearner(tiny_dynamics(**changes).train(), TRAINING, shortcut, world.clips(), 7)


def tokenizer_learner(world: World, **changes) -> TokenizerLearner:
    training = TokenizerTraining(steps=10, batch=3, length=5)
    return TokenizerLearner(tiny_tokenizer(**changes).train(), training, world.clips(latents=False), 7)


def agent_learner(world: World, shortcut: ShortcutConfig = SHORTCUT) -> AgentLearner:
    dynamics = tiny_dynamics(agent_tokens=2).train()
    heads = tiny_heads(dynamics, layers=2, continues=False).train()
    everything = np.ones(len(world.walks), bool)
    training = AgentTraining(steps=10, batch=4, length=5)
    return AgentLearner(dynamics, heads, training, shortcut, world.clips(), everything, 7)


def bc_learner(world: World, scratch: bool) -> FilteredBCLearner:
    dynamics, kind = tiny_dynamics().train(), ScratchBCLearner if scratch else FilteredBCLearner
    policy = tiny_heads(dynamics, layers=2).policy.train()
    return kind(dynamics, policy, AgentTraining(steps=10, batch=4, length=5), SHORTCUT, world.clips(), 7)


def iql_learner(world: World) -> IQLLearner:
    training = IQLTraining(steps=10, batch=4, length=5, also=(0.3, 0.03), hidden=24, layers=2)
    dynamics = tiny_dynamics(agent_tokens=2)
    model = IQLModel(tiny_heads(dynamics).policy, dynamics.config.feature_width, training).train()
    return IQLLearner(dynamics, model, training, 0.9, SHORTCUT, world.clips(), 7)


@pytest.mark.parametrize(
    "make",
    [
        dynamics_learner,
        lambda world: dynamics_learner(world, replace(SHORTCUT, bootstrap_rows=0.25)),
        lambda world: dynamics_learner(world, replace(SHORTCUT, bootstrap_rows=0.0)),
        lambda world: dynamics_learner(world, replace(SHORTCUT, drafts=True)),
        lambda world: dynamics_learner(world, kv_heads=2, action_tokens=2, registers=1),
        tokenizer_learner,
        agent_learner,
        lambda world: agent_learner(world, replace(SHORTCUT, drafts=True)),
        lambda world: bc_learner(world, scratch=False),
        lambda world: bc_learner(world, scratch=True),
        iql_learner,
    ],
    ids=[
        *("dynamics", "bootstrapped rows", "no teacher", "drafts", "other tokens"),
        *("tokenizer", "agent", "agent by drafts", "filtered BC", "BC from scratch", "IQL"),
    ],
)
def test_the_estimate_is_what_torch_counts(make: Callable, world: World):
    """To the last operation, on short batches and on long ones."""
    learner = make(world)
    estimates = [learner.estimate_flops(index) for index in range(4)]
    assert estimates == [counted(learner, index) for index in range(4)]
    assert all(estimates)


def test_actions_of_all_kinds_are_counted():
    dynamics, clip = tiny_dynamics(actions=MIXED_SPACE.to_json()), random_clip(2, 3, MIXED_SPACE)
    level_BT = torch.zeros_like(clip.segment_BT)
    with FlopCounterMode(display=False) as counter:
        output = dynamics(clip.latents_BTSD, level_BT, level_BT, clip.act_in_BTA, clip.act_in_known_BT)
        forward = counter.get_total_flops()
        output.clean_BTSD.sum().backward()
    estimate = flops.dynamics(dynamics.config, 2, 3)
    assert (estimate.forward, estimate.total) == (forward, counter.get_total_flops())


def test_a_wrong_size_is_noticed(world: World):
    """The comparison above is exact, so one register more or one row less is a difference."""
    learner = dynamics_learner(world)
    config, shape = learner.dynamics.config, TRAINING.batch_shape(7, 0)
    true = flops.shortcut_update(config, SHORTCUT, *shape)
    assert true == counted(learner, 0)
    assert flops.shortcut_update(replace(config, registers=3), SHORTCUT, *shape) != true
    assert flops.shortcut_update(config, replace(SHORTCUT, bootstrap_rows=0.5), *shape) != true


def test_what_is_computed_twice_counts_once(world: World):
    """Checkpointed layers pass forward again: torch counts it, we don't."""
    plain, checkpointed = dynamics_learner(world), dynamics_learner(world)
    checkpointed.parallelise(Parallel(ParallelConfig(activation_checkpointing=True)))
    assert checkpointed.estimate_flops(0) == plain.estimate_flops(0) == counted(plain, 0) < counted(checkpointed, 0)
