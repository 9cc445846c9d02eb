from dataclasses import replace

import pytest
import torch
from factories import changed, frames_that_differ, normal, random_clip, tiny_dynamics
from resuming import assert_resume_is_exact, assert_steps_differ, everything
from states import assert_equal
from worlds import World

from dreamer4.errors import ConfigError, NonFiniteError
from dreamer4.rng import generator
from dreamer4.shortcut import Levels, ShortcutConfig, shortcut_error
from learners.dynamics import (
    DynamicsLearner,
    DynamicsTraining,
    cut,
    noised,
    separate_images,
    shortcut_errors,
    targets,
    twice,
)
from learners.optim import OptimConfig

TRAINING = DynamicsTraining(
    steps=10,
    batch=4,
    length=3,
    long_length=6,
    long_batch=2,
    long_share=0.5,
    optim=OptimConfig(lr=3e-3, warmup_steps=2),
)
SHORTCUT = ShortcutConfig(k_max=8)
DRAFTS = replace(SHORTCUT, drafts=True)


@pytest.fixture
def make(world: World):
    def build(weights: int, training: DynamicsTraining = TRAINING, shortcut: ShortcutConfig = SHORTCUT):
        return DynamicsLearner(tiny_dynamics(weights).train(), training, shortcut, world.clips(), 7)

    return build


def parameter_gradients(dynamics, loss):
    dynamics.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in dynamics.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("bootstrap_rows", [None, 0.5])
def test_resuming_is_exact(make, tmp_path, bootstrap_rows):
    shortcut = replace(SHORTCUT, bootstrap_rows=bootstrap_rows)
    assert_resume_is_exact(lambda weights: make(weights, shortcut=shortcut), tmp_path)
    assert_steps_differ(make)


def test_training_by_drafts_reduces_the_loss(make):
    learner = make(0, shortcut=DRAFTS)
    rows = [learner.step(index)["shortcut"] for index in range(60)]
    assert sum(rows[-10:]) < 0.8 * sum(rows[:10])


def drafted(dynamics, clip, z, levels):
    """Predictions of a doubled clip."""
    clip = twice(clip)
    known = clip.act_in_known_BT
    return dynamics(
        *(z, levels.tau_idx, levels.step_idx, clip.act_in_BTA, known, clip.segment_BT, clip.task_BT), drafts=True
    )


def test_a_draft_is_what_a_stream_predicts_of_the_next_frame():
    """Training by drafts asks for exactly what sampling asks for: each frame after committed ones."""
    dynamics, clip = tiny_dynamics(), random_clip(3, 6)  # longer than the window of 4
    z, levels = noised(twice(clip), DRAFTS, generator("noise"))
    assert bool((levels.tau_idx[:, :6] == DRAFTS.context_idx).all() and (levels.step_idx[:, :6] == DRAFTS.finest).all())
    assert not torch.equal(levels.tau_idx[:, 6:], levels.tau_idx[:, :6])
    output, cache = drafted(dynamics, clip, z, levels), dynamics.init_cache(3)
    for t in range(6):
        for place, commit in ((6 + t, False), (t, True)):
            at = slice(place, place + 1)
            inputs = z[:, at], levels.tau_idx[:, at], levels.step_idx[:, at], clip.act_in_BTA[:, t : t + 1]
            known, task = clip.act_in_known_BT[:, t : t + 1], clip.task_BT[:, t : t + 1]
            expected = dynamics(*inputs, known, None, task, cache, commit)
            torch.testing.assert_close(output.clean_BTSD[:, at], expected.clean_BTSD, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(output.features_BTM[:, at], expected.features_BTM, atol=1e-5, rtol=1e-4)


def test_nothing_sees_a_draft_and_no_draft_its_own_frame():
    """What changes with a draft is itself; with a frame: it, what follows, and the drafts of what follows."""
    dynamics, clip = tiny_dynamics(), random_clip(1, 3)
    z, levels = noised(twice(clip), DRAFTS, generator("noise"))
    before = drafted(dynamics, clip, z, levels).clean_BTSD
    for place, reached in ((4, [4]), (1, [1, 2, 5])):
        after = drafted(dynamics, clip, changed(z, 0, place), levels).clean_BTSD
        assert [t for t in range(6) if not torch.equal(before[:, t], after[:, t])] == reached


def test_errors_of_drafts_are_those_of_the_frames_they_stand_for():
    """By hand, teacher included; and the features are those of committed frames."""
    dynamics, clip = tiny_dynamics(), random_clip(4, 4)
    error, features = shortcut_errors(dynamics, clip, DRAFTS, generator("noise"), agent=True)
    z, levels = noised(twice(clip), DRAFTS, generator("noise"))
    assert bool((levels.step_idx[:, 4:] < DRAFTS.finest).any()), "some drafts have a teacher"
    target = targets(dynamics, twice(clip), z, levels, DRAFTS)
    assert torch.equal(target[:, :4], clip.latents_BTSD)
    output = drafted(dynamics, clip, z, levels)
    late = Levels(levels.tau_idx[:, 4:], levels.step_idx[:, 4:], 8)
    torch.testing.assert_close(error, shortcut_error(output.clean_BTSD[:, 4:], target[:, 4:], late, True))
    torch.testing.assert_close(features, output.features_BTM[:, :4])
    assert shortcut_errors(dynamics, clip, DRAFTS, generator("noise"))[1] is None


def test_the_teacher_of_drafts_sees_committed_frames_only():
    """The drafts' targets are those of one frame after clean-ish ones: another draft's noise is nothing to them."""
    dynamics, clip = tiny_dynamics(), random_clip(8, 4)
    z, levels = noised(twice(clip), DRAFTS, generator("noise"))
    before = targets(dynamics, twice(clip), z, levels, DRAFTS)
    after = targets(dynamics, twice(clip), changed(z, slice(None), 5), levels, DRAFTS)
    assert frames_that_differ(before, after) == [5]


def test_drafts_need_no_share_of_frames_at_the_level_of_the_context():
    with pytest.raises(ConfigError, match=r"context_share must be 0, got 0.5"):
        ShortcutConfig(drafts=True, context_share=0.5)


def test_training_reduces_the_loss(make):
    learner = make(0)
    rows = [learner.step(index)["shortcut"] for index in range(60)]
    assert sum(rows[-10:]) < 0.8 * sum(rows[:10])


def test_a_broken_weight_is_named_and_nothing_else_changes(make):
    learner = make(0)
    learner.step(0)
    with torch.no_grad():
        learner.dynamics.latent_out.bias[0] = float("nan")
    before = everything(learner)
    with pytest.raises(NonFiniteError, match=r"^dynamics: 'shortcut' is nan at step 1;.*dynamics_training\.optim\.lr"):
        learner.step(1)
    after = everything(learner)
    before["weights"]["latent_out.bias"][0] = after["weights"]["latent_out.bias"][0] = 0.0  # nan equals nothing
    assert_equal(before, after)


def test_agent_tokens_wait_untouched_for_their_stage(make):
    """Invariant 42: pretraining, decay included, leaves the parameters of agent tokens as they were."""
    learner = make(0)
    start = {name: value.clone() for name, value in learner.weights().items()}
    learner.step(0)
    agent = {"agent_base", "task_embedding.weight", "feature_norm.gain"}
    assert {name for name in start if torch.equal(start[name], learner.weights()[name])} == agent


def test_long_batches_have_their_share_and_the_end_is_long():
    training = DynamicsTraining(steps=2000, batch=32, length=8, long_batch=16, long_length=24, long_share=0.1)
    shapes = [training.batch_shape(3, index) for index in range(2000)]
    assert set(shapes) == {(32, 8), (16, 24)}
    assert 0.07 < shapes.count((16, 24)) / 2000 < 0.13
    assert shapes == [training.batch_shape(3, index) for index in range(2000)], "a function of seed and step"
    assert shapes != [training.batch_shape(4, index) for index in range(2000)]
    ending = replace(training, long_only_steps=50)
    assert {ending.batch_shape(3, index) for index in range(1950, 2000)} == {(16, 24)}
    assert [ending.batch_shape(3, index) for index in range(1950)] == shapes[:1950]


@pytest.mark.parametrize(("share", "expected"), [(0.0, {(4, 3)}), (1.0, {(2, 6)})])
def test_the_learner_asks_for_the_batches_that_are_due(make, monkeypatch, share, expected):
    learner, seen = make(0, replace(TRAINING, long_share=share)), set()
    batch = learner.clips.batch
    monkeypatch.setattr(learner.clips, "batch", lambda i, *shape: (seen.add(shape[:2]), batch(i, *shape))[1])
    for index in range(3):
        learner.losses(index)
    assert seen == expected


@pytest.mark.parametrize("change", [{"image_share": 1.2}, {"long_share": -0.1}])
def test_shares_are_shares(change):
    with pytest.raises(ConfigError, match=r"image_share.*long_share"):
        DynamicsTraining(**change)


def test_packed_batches_have_one_shape(make, monkeypatch):
    learner, seen = make(0, replace(TRAINING, packed=True)), []
    batch = learner.clips.batch
    monkeypatch.setattr(learner.clips, "batch", lambda i, *shape: (seen.append(shape[:2]), batch(i, *shape))[1])
    for index in range(10):
        learner.losses(index)
    assert seen == 10 * [(2, 6)]


def test_packed_rows_divide_into_clips():
    with pytest.raises(ConfigError, match=r"rows of 16 frames don't divide into clips of 6"):
        DynamicsTraining(length=6, long_length=16, packed=True)


def test_long_rows_of_packed_batches_have_their_share_and_the_end_is_long():
    training = replace(TRAINING, steps=50, packed=True, long_share=0.2, long_only_steps=5)
    assert [training.long_share_at(index) for index in range(50)] == 45 * [0.2] + 5 * [1.0]
    clip = cut(random_clip(500, 6), 3, 0.2, generator("rows"))
    whole = int((clip.segment_BT[:, 0] == clip.segment_BT[:, -1]).sum())
    assert 70 < whole < 130


def test_a_cut_row_is_the_same_as_its_clips_side_by_side():
    """Bit by bit what short batches give, but for the order of sums; the control is the row in one piece."""
    dynamics, row = tiny_dynamics(), random_clip(2, 6)
    short = row.map(lambda x: x.unflatten(1, (2, 3)).flatten(0, 1))
    expected = output(dynamics, short).clean_BTSD.unflatten(0, (2, 2)).flatten(1, 2)
    torch.testing.assert_close(output(dynamics, cut(row, 3, 0.0, generator("rows"))).clean_BTSD, expected)
    assert not torch.allclose(output(dynamics, cut(row, 3, 1.0, generator("rows"))).clean_BTSD, expected)


def test_episodes_of_a_cut_row_stay_apart():
    row = replace(random_clip(1, 6), segment_BT=torch.tensor([[0, 0, 1, 1, 1, 2]]))
    assert cut(row, 3, 0.0, generator("rows")).segment_BT.tolist() == [[0, 0, 1, 2, 2, 3]]


def output(dynamics, clip):
    level = torch.full_like(clip.segment_BT, 5)
    return dynamics(
        clip.latents_BTSD,
        level,
        torch.full_like(level, 3),
        clip.act_in_BTA,
        clip.act_in_known_BT,
        clip.segment_BT,
        clip.task_BT,
    )


def test_frames_of_separate_images_do_not_see_each_other():
    """Invariant 31, for predictions and agent features; the control is the same clip as video."""
    dynamics, clip = tiny_dynamics(), random_clip(2, 5)
    images = separate_images(clip, 1.0, generator("noise"))
    for one, reached in ((images, [2]), (clip, [2, 3, 4])):
        other = replace(one, latents_BTSD=changed(one.latents_BTSD, 1, 2))
        before, after = output(dynamics, one), output(dynamics, other)
        assert frames_that_differ(before.clean_BTSD, after.clean_BTSD) == reached
        assert frames_that_differ(before.features_BTM, after.features_BTM) == reached


def test_separate_images_have_no_actions():
    """Invariant 31: an image doesn't know what led to it; the control is the same clip as video."""
    dynamics, clip = tiny_dynamics(), random_clip(2, 5)
    images = separate_images(clip, 1.0, generator("noise"))
    assert not images.act_in_known_BT.any()
    for one, reached in ((images, []), (clip, [2, 3, 4])):
        actions = one.act_in_BTA.clone()
        actions[1, 2] = (actions[1, 2] + 1) % 3
        other = replace(one, act_in_BTA=actions)
        assert frames_that_differ(output(dynamics, one).clean_BTSD, output(dynamics, other).clean_BTSD) == reached


def test_separate_images_are_whole_rows_of_their_share():
    clip = random_clip(2000, 3)
    images = separate_images(clip, 0.3, generator("noise"))
    own = (images.segment_BT == torch.arange(3)).all(1)
    video = (images.segment_BT == clip.segment_BT).all(1)
    assert bool((own ^ video).all())
    assert 0.26 < float(own.float().mean()) < 0.34
    assert torch.equal(images.act_in_known_BT[video], clip.act_in_known_BT[video])
    assert separate_images(clip, 0.0, generator("noise")).act_in_known_BT.equal(clip.act_in_known_BT)


def test_targets_are_constants_that_keep_no_graph():
    """Invariant 26: the gradient is that of the error to fixed numbers."""
    dynamics, clip = tiny_dynamics(), random_clip(4, 4)
    learner = DynamicsLearner(dynamics, TRAINING, SHORTCUT, None, 7)
    z, levels = noised(clip, SHORTCUT, generator("noise"))
    target = targets(dynamics, clip, z, levels, SHORTCUT)
    assert target.grad_fn is None and not target.requires_grad
    assert bool((target != clip.latents_BTSD).any()), "some frames have a teacher"
    student = dynamics(z, levels.tau_idx, levels.step_idx, clip.act_in_BTA, clip.act_in_known_BT, clip.segment_BT)
    error = shortcut_error(student.clean_BTSD, target.clone(), levels, True).mean()
    expected = parameter_gradients(dynamics, error)
    assert_equal(expected, parameter_gradients(dynamics, learner.shortcut_loss(clip, generator("noise"))))


def test_the_teacher_is_done_before_the_student_begins():
    """Invariant 26: two passes without a graph, then one with it."""
    dynamics, clip = tiny_dynamics(), random_clip(4, 4)
    learner, passes = DynamicsLearner(dynamics, TRAINING, SHORTCUT, None, 7), []
    dynamics.register_forward_hook(lambda *call: passes.append(call[-1].clean_BTSD.requires_grad))
    learner.shortcut_loss(clip, generator("noise"))
    assert passes == [False, False, True]


def test_the_teacher_is_the_model_itself_with_the_actions_of_the_clip():
    """Other weights or other actions, other targets."""
    clip = random_clip(4, 4)
    z, levels = noised(clip, SHORTCUT, generator("noise"))
    base = targets(tiny_dynamics(0), clip, z, levels, SHORTCUT)
    assert not torch.equal(base, targets(tiny_dynamics(1), clip, z, levels, SHORTCUT))
    acted = replace(clip, act_in_BTA=(clip.act_in_BTA + 1) % 3)
    assert not torch.equal(base, targets(tiny_dynamics(0), acted, z, levels, SHORTCUT))


def test_the_teacher_sees_no_other_episode_of_the_row():
    """Targets of the second episode don't depend on the first; the control: in one episode they do."""
    for segment, reached in (([0, 0, 1, 1], [0]), ([0, 0, 0, 0], [0, 1, 2, 3])):
        clip = random_clip(32, 4, segment_BT=torch.tensor([segment]).expand(32, 4))
        z, levels = noised(clip, SHORTCUT, generator("noise"))
        before = targets(tiny_dynamics(), clip, z, levels, SHORTCUT)
        after = targets(tiny_dynamics(), clip, changed(z, slice(None), 0), levels, SHORTCUT)
        assert set(reached) - {1} <= set(frames_that_differ(before, after)) <= {*reached, 1}


def test_every_step_has_its_own_noise(make, monkeypatch):
    """Also where two steps happen to draw the same clips."""
    learner = make(0, replace(TRAINING, long_share=0.0))
    same_clip = learner.clips.batch(0, 4, 3)
    monkeypatch.setattr(learner.clips, "batch", lambda *arguments: same_clip)
    assert learner.losses(0)["shortcut"] == learner.losses(0)["shortcut"] != learner.losses(1)["shortcut"]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_bootstrap_rows_are_the_default_objective_on_those_rows(share):
    """Section 6.4: the teacher is spared on the other rows, and nothing else changes."""
    dynamics, clip, option = tiny_dynamics(), random_clip(4, 5), replace(SHORTCUT, bootstrap_rows=share)
    z, levels = noised(clip, option, generator("noise"))
    bootstrapped = levels.step_idx < option.finest
    rows = round(share * 4)
    assert bool(bootstrapped[:rows].all()) and not bootstrapped[rows:].any()
    spared, whole = targets(dynamics, clip, z, levels, option), targets(dynamics, clip, z, levels, SHORTCUT)
    assert torch.allclose(spared, whole, atol=1e-6)
    assert torch.equal(spared[rows:], clip.latents_BTSD[rows:])
    assert rows == 0 or not torch.allclose(spared[:rows], clip.latents_BTSD[:rows], atol=1e-3)


def test_corruption_follows_the_levels():
    clip = random_clip(3, 4)
    z, levels = noised(clip, SHORTCUT, generator("noise"))
    again, _ = noised(replace(clip, latents_BTSD=clip.latents_BTSD + normal(3, 4, 2, 6)), SHORTCUT, generator("noise"))
    weight = levels.tau[..., None, None]
    assert torch.allclose(again - z, weight * normal(3, 4, 2, 6), atol=1e-6)
