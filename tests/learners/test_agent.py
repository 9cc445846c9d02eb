from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import changed, level_inputs, lively, random_clip, tiny_dynamics, tiny_heads
from resuming import assert_resume_is_exact, assert_steps_differ, everything
from states import assert_equal, copied, same
from worlds import World, has_gradient

from dreamer4.checkpoint import Checkpoints
from dreamer4.errors import ConfigError, NonFiniteError
from dreamer4.heads import PolicyHead
from dreamer4.imagination import ImaginationConfig, WorldStream
from dreamer4.rng import generator
from dreamer4.shortcut import ShortcutConfig
from learners.agent import AgentLearner, AgentTraining, FilteredBCLearner, ScratchBCLearner, context_features
from learners.dynamics import DynamicsLearner, DynamicsTraining
from learners.learner import load_weights
from learners.optim import OptimConfig
from learners.parts import WHOLE

OPTIM = OptimConfig(lr=3e-3, warmup_steps=2)
TRAINING = AgentTraining(steps=10, batch=6, length=4, optim=OPTIM)
MIXED = replace(TRAINING, relevant="success")
SHORTCUT = ShortcutConfig(k_max=8)
ROWS = torch.arange(6)
SOME, OTHERS = ROWS < 3, ROWS >= 3
ALL, NONE = ROWS >= 0, ROWS < 0


@pytest.fixture
def make(world: World):
    def build(
        weights: int,
        training: AgentTraining = MIXED,
        shortcut: ShortcutConfig = SHORTCUT,
        halved: bool = False,
        **heads,
    ):
        dynamics = tiny_dynamics(weights).train()
        own = tiny_heads(dynamics, weights, **heads).train()
        return AgentLearner(dynamics, own, training, shortcut, world.clips(), world.dataset.success_E, 7, halved)

    return build


@pytest.fixture
def make_bc(world: World):
    def build(weights: int) -> FilteredBCLearner:
        dynamics = tiny_dynamics(0)
        policy = tiny_heads(dynamics, weights).policy.train()
        clips = world.clips(episodes=world.dataset.success_E)
        return FilteredBCLearner(dynamics, policy, TRAINING, SHORTCUT, clips, 7)

    return build


@pytest.mark.parametrize("training", [TRAINING, MIXED], ids=["all", "success"])
def test_resuming_is_exact(make, tmp_path, training):
    assert_resume_is_exact(lambda weights: make(weights, training), tmp_path)
    assert_steps_differ(make)


def test_filtered_cloning_resumes_exactly(make_bc, tmp_path):
    assert_resume_is_exact(make_bc, tmp_path)
    assert_steps_differ(make_bc)


def test_cloning_from_scratch_trains_the_transformer_and_resumes_exactly(world, tmp_path):
    def build(weights: int) -> ScratchBCLearner:
        dynamics = tiny_dynamics(weights).train()
        policy = tiny_heads(dynamics, weights).policy.train()
        return ScratchBCLearner(dynamics, policy, TRAINING, SHORTCUT, world.clips(), 7)

    assert_resume_is_exact(build, tmp_path)
    learner = build(0)
    before = {name: value.clone() for name, value in learner.weights().items()}
    learner.step(0)
    changed = {name for name, value in learner.weights().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("dynamics.") for name in changed) and any(name.startswith("policy.") for name in changed)


def test_training_reduces_every_term(make):
    learner = make(0, replace(TRAINING, image_share=0.0))
    rows = [learner.step(index) for index in range(60)]
    for term in ("shortcut", "policy", "reward", "continue"):
        assert sum(row[term] for row in rows[-10:]) < 0.9 * sum(row[term] for row in rows[:10]), term


@pytest.mark.parametrize("term", ["policy", "reward", "continue", "shortcut"])
def test_a_broken_term_is_named_and_nothing_else_changes(make, term):
    learner = make(0)
    learner.step(0)
    output = {
        "policy": lambda m: m.heads.policy.mlp.output,
        "reward": lambda m: m.heads.reward.mlp.output,
        "continue": lambda m: m.heads.continues.mlp.output,
        "shortcut": lambda m: m.dynamics.latent_out,
    }[term]
    bias, good = output(learner.module).bias, output(learner.module).bias.detach().clone()
    before = everything(learner)
    with torch.no_grad():
        bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=rf"^agent: '{term}' is nan at step 1;.*agent_training\.optim\.lr"):
        learner.step(1)
    with torch.no_grad():
        bias.copy_(good)
    assert_equal(before, everything(learner))


def test_without_a_continue_head_there_is_no_such_term(make):
    learner = make(0, continues=False)
    assert learner.step(0).keys() == {"shortcut", "policy", "reward", "gradient_norm", "lr"}


def losses(make, clip, cloned, modelled, **options):
    learner = make(0, **options)
    return learner, learner.clip_losses(clip, generator("noise"), cloned, modelled)


def term_has_gradient(learner, loss, module):
    learner.module.zero_grad()
    loss.backward(retain_graph=True)
    return has_gradient(module)


def test_without_relevant_rows_behaviour_has_no_gradient(make):
    """Invariant 41; the control are rows of both kinds."""
    clip = random_clip(6, 4)
    for cloned, expected in ((NONE, False), (SOME, True)):
        learner, terms = losses(make, clip, cloned, ALL)
        assert term_has_gradient(learner, terms["policy"], learner.module) is expected
        assert term_has_gradient(learner, terms["shortcut"], learner.dynamics)
        assert term_has_gradient(learner, terms["reward"], learner.heads.reward)
        assert bool(terms["policy"] != 0) is expected


def test_without_uniform_rows_the_video_has_no_gradient(make):
    """Invariant 41; the control are rows of both kinds."""
    clip = random_clip(6, 4)
    for modelled, expected in ((NONE, False), (OTHERS, True)):
        learner, terms = losses(make, clip, ALL, modelled)
        assert term_has_gradient(learner, terms["shortcut"], learner.module) is expected
        assert term_has_gradient(learner, terms["policy"], learner.heads.policy)
        assert term_has_gradient(learner, terms["reward"], learner.heads.reward)


@pytest.mark.parametrize(
    ("name", "changing", "staying"),
    [("act_out_BTA", "policy", "shortcut"), ("reward_BT", "reward", "shortcut"), ("continue_BT", "continue", "policy")],
)
def test_rows_reach_the_terms_they_are_for_and_no_other(make, name, changing, staying):
    """Invariant 41: actions count in cloned rows only, rewards and ends in all rows."""
    clip = random_clip(6, 4)
    _, base = losses(make, clip, SOME, OTHERS)
    for row in (0, 5):
        value = clip.act_out_BTA.clone() if name == "act_out_BTA" else changed(getattr(clip, name), row, 2)
        if name == "act_out_BTA":
            value[row, 2] = (value[row, 2] + 1) % 3
        _, terms = losses(make, replace(clip, **{name: value}), SOME, OTHERS)
        counts = row == 0 or name != "act_out_BTA"
        assert bool(terms[changing] != base[changing]) is counts, (name, row)
        assert torch.equal(terms[staying], base[staying])


def test_video_of_relevant_rows_does_not_teach_the_world_model(make):
    """Invariant 41: latents of row 0 reach behaviour, those of row 5 the video."""
    clip = random_clip(6, 4)
    _, base = losses(make, clip, SOME, OTHERS)
    for row, term, other_term in ((0, "policy", "shortcut"), (5, "shortcut", "policy")):
        moved = replace(clip, latents_BTSD=changed(clip.latents_BTSD, row))
        _, terms = losses(make, moved, SOME, OTHERS)
        assert not torch.equal(terms[term], base[term])
        assert torch.equal(terms[other_term], base[other_term])


def test_all_rows_do_both_where_every_recording_is_of_the_task(make):
    clip = random_clip(6, 4)
    _, routed = losses(make, clip, ALL, ALL)
    _, plain = losses(make, clip, None, None)
    assert_equal(dict(routed), dict(plain))


def test_the_relevant_half_of_a_mixture_is_cloned_and_the_other_modelled(make, monkeypatch):
    learner, seen = make(0), []
    monkeypatch.setattr(learner, "clip_losses", lambda clip, noise, *rows: seen.append((clip, *rows)) or {})
    mixture = learner.clips.mixture
    given = []
    monkeypatch.setattr(learner.clips, "mixture", lambda *a: given.append(mixture(*a)) or given[-1])
    for index in range(10):
        learner.losses(index)
    for (drawn, relevant), (clip, cloned, modelled, _) in zip(given, seen, strict=True):
        assert int(relevant.sum()) == 3 and torch.equal(cloned, ~modelled)
        for chosen, expected in ((cloned, relevant), (modelled, ~relevant)):
            assert sorted(clip.latents_BTSD[chosen, 0, 0, 0]) == sorted(drawn.latents_BTSD[expected, 0, 0, 0])
            assert sorted(clip.reward_BT[chosen].sum(1)) == sorted(drawn.reward_BT[expected].sum(1))
    first = torch.stack([modelled[:3] for _, _, modelled, _ in seen])
    assert first.any() and not first.all(), "the rows that bootstrap_rows singles out are of both kinds"


def test_halved_rows_all_teach_the_model_and_the_uniform_ones_behaviour(make):
    learner, plain = make(0, TRAINING, halved=True), make(0, TRAINING)
    wins = []
    for index in range(20):
        clip, cloned_B, modelled_B = learner.draw(index, generator(index), WHOLE.rows(6))
        assert modelled_B is None and cloned_B is not None and int(cloned_B.sum()) == 3
        wins.append((clip.reward_BT[~cloned_B].sum(1) > 0).float().mean())
        assert plain.draw(index, generator(index), WHOLE.rows(6))[1:] == (None, None)
    uniform = [plain.draw(index, generator(index), WHOLE.rows(6))[0].reward_BT.sum(1) > 0 for index in range(20)]
    assert float(np.mean(wins)) > float(torch.cat(uniform).float().mean()) > 0, "the others are of successful episodes"


def test_heads_teach_the_world_model(make):
    """Section 10: gradients of the heads flow into the transformer."""
    learner, terms = losses(make, random_clip(6, 4), None, None)
    for term in ("policy", "reward", "continue"):
        assert term_has_gradient(learner, terms[term], learner.dynamics.transformer)
        assert not term_has_gradient(learner, terms[term], learner.dynamics.latent_out)


def test_the_video_loss_does_not_reach_task_or_agent_tokens(make):
    """Invariant 7."""
    learner, terms = losses(make, random_clip(6, 4), None, None)
    learner.module.zero_grad()
    terms["shortcut"].backward(retain_graph=True)
    agent = [learner.dynamics.task_embedding.weight, learner.dynamics.agent_base]
    assert all(p.grad is None or not p.grad.any() for p in agent)
    terms["policy"].backward()
    assert all(bool(p.grad.any()) for p in agent)


def test_finetuning_starts_from_the_pretrained_world(world, tmp_path):
    """Invariant 42: the model of stage 3 predicts exactly what the checkpoint of stage 2 does."""
    pretrained = tiny_dynamics(0).train()
    training = DynamicsTraining(steps=5, batch=4, length=4, optim=OPTIM)
    former = DynamicsLearner(pretrained, training, SHORTCUT, world.clips(), 7)
    for index in range(2):
        former.step(index)
    Checkpoints(tmp_path).save(2, former.weights(), former.state(), {})
    dynamics = tiny_dynamics(1)
    inputs = level_inputs(dynamics, 2, 5)
    expected = pretrained(**inputs).clean_BTSD
    assert not torch.allclose(dynamics(**inputs).clean_BTSD, expected, atol=1e-3), "the control: before loading"
    load_weights(dynamics, Checkpoints(tmp_path).load().weights, "dynamics")
    AgentLearner(dynamics, tiny_heads(dynamics), TRAINING, SHORTCUT, world.clips(), world.dataset.success_E, 7)
    assert torch.equal(dynamics(**inputs).clean_BTSD, expected)
    task = torch.ones(2, 5, dtype=torch.long)
    assert torch.allclose(dynamics(**inputs, task_BT=task).clean_BTSD, expected, atol=1e-6)


def test_image_rows_are_part_of_finetuning(make, monkeypatch):
    seen = []
    for share in (0.0, 1.0):
        learner = make(0, replace(TRAINING, image_share=share))
        monkeypatch.setattr(learner, "clip_losses", lambda clip, *rest: seen.append(clip) or {})
        learner.losses(0)
    assert bool(seen[0].act_in_known_BT.any()) and not seen[1].act_in_known_BT.any()
    assert torch.equal(seen[0].latents_BTSD, seen[1].latents_BTSD)


def test_context_share_puts_frames_at_the_level_of_the_context(make):
    learner = make(0, replace(TRAINING, context_share=1.0))
    levels = []
    learner.dynamics.register_forward_pre_hook(lambda module, args: levels.append(args[1]))
    learner.losses(0)
    assert bool((levels[-1] == SHORTCUT.context_idx).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relevant": "most"}, "'most'"),
        ({"image_share": 2.0}, "image_share"),
        ({"context_share": -1.0}, "context_share"),
    ],
)
def test_impossible_settings_are_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=message):
        AgentTraining(**change)


def test_filtered_cloning_changes_the_policy_head_only(make_bc):
    """Invariant 49's like: the world model is frozen."""
    learner = make_bc(1)
    world_before, policy_before = copied(learner.dynamics.state_dict()), copied(learner.weights())
    learner.step(0)
    assert_equal(world_before, copied(learner.dynamics.state_dict()))
    assert not same(policy_before, copied(learner.weights()))
    assert not any(p.requires_grad or p.grad is not None for p in learner.dynamics.parameters())


def test_filtered_cloning_improves_on_its_recordings(make_bc):
    learner = make_bc(1)
    rows = [learner.step(index)["policy"] for index in range(60)]
    assert sum(rows[-10:]) < 0.9 * sum(rows[:10])


def test_filtered_cloning_reads_the_features_that_act():
    """Invariant 54: a pass over the clip equals the stream that is fed frame by frame, with the same noise."""
    dynamics, clip = tiny_dynamics().requires_grad_(False), random_clip(2, 7)
    noise = torch.randn(clip.latents_BTSD.shape, generator=generator("noise"))
    features = context_features(dynamics, clip, SHORTCUT, generator("noise"))
    stream = WorldStream(dynamics, SHORTCUT, ImaginationConfig(), 2, clip.task_BT[:, 0])
    with torch.no_grad():
        frames = [
            stream.observe(clip.latents_BTSD[:, t], clip.act_in_BTA[:, t], clip.act_in_known_BT[:, t], noise[:, t])
            for t in (slice(i, i + 1) for i in range(7))
        ]
    assert torch.allclose(features, torch.cat(frames, 1), atol=1e-5)
    assert not features.requires_grad


def test_every_episode_of_a_row_has_its_own_task():
    """A row may hold the end of one episode and the beginning of another of another task."""
    dynamics, segment = tiny_dynamics(), torch.tensor([[0, 0, 0, 1, 1]])
    clip = random_clip(1, 5, segment_BT=segment)
    whole = context_features(dynamics, replace(clip, task_BT=segment), SHORTCUT, generator("noise"))
    for task, frames in ((0, slice(0, 3)), (1, slice(3, 5))):
        alone = replace(clip, task_BT=torch.full_like(segment, task))
        assert torch.allclose(
            whole[:, frames], context_features(dynamics, alone, SHORTCUT, generator("noise"))[:, frames], atol=1e-6
        )


def test_relevant_episodes_alone_feed_filtered_cloning(make_bc, world):
    clip = make_bc(0).clips.batch(0, 64, 4)
    rewarded = {round(float(x), 4) for i in np.flatnonzero(world.dataset.success_E) for x in first_latents(world, i)}
    assert {round(float(x), 4) for x in clip.latents_BTSD[:, :, 0, 0].flatten()} <= rewarded


def first_latents(world, episode):
    start, length = int(world.dataset.starts_E[episode]), int(world.dataset.lengths_E[episode])
    return np.asarray(world.latents.latents(start, start + length))[:, 0, 0]


def test_a_fresh_policy_head_is_as_good_as_chance(world):
    """Cross entropy of a uniform policy is ln 3: the loss is in nats per action."""
    dynamics = tiny_dynamics()
    policy = PolicyHead(dynamics.config.feature_width, 8, 1, 2, dynamics.config.space)
    lively(policy.mlp.trunk)
    learner = FilteredBCLearner(dynamics, policy, TRAINING, SHORTCUT, world.clips(), 7)
    assert learner.step(0)["policy"] == pytest.approx(np.log(3), abs=1e-5)
