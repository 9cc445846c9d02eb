import math

import pytest
import torch
from factories import tiny_tokenizer
from resuming import assert_resume_is_exact, assert_steps_differ, everything
from states import assert_equal
from worlds import World

from dreamer4.errors import ConfigError, NonFiniteError
from learners.optim import OptimConfig
from learners.tokenizer import TokenizerLearner, TokenizerTraining

TRAINING = TokenizerTraining(steps=10, batch=3, length=4, optim=OptimConfig(lr=3e-3, warmup_steps=2))


@pytest.fixture
def make(world: World):
    def build(weights: int, training: TokenizerTraining = TRAINING, **config) -> TokenizerLearner:
        return TokenizerLearner(tiny_tokenizer(weights, **config).train(), training, world.clips(latents=False), 7)

    return build


def test_resuming_is_exact(make, tmp_path):
    assert_resume_is_exact(make, tmp_path)
    assert_steps_differ(make)


def test_another_seed_masks_other_patches(make, world):
    clips = world.clips(latents=False)
    one, other = (TokenizerLearner(tiny_tokenizer(), TRAINING, clips, seed) for seed in (7, 8))
    assert one.step(0)["mse"] != other.step(0)["mse"]


def test_training_reduces_the_error(make):
    learner = make(0)
    before = learner.validate(learner.clips, 2)["validation_psnr"]
    for index in range(30):
        learner.step(index)
    assert learner.validate(learner.clips, 2)["validation_psnr"] > before + 1


def test_a_broken_weight_is_named_and_nothing_else_changes(make):
    learner = make(0)
    learner.step(0)
    with torch.no_grad():
        learner.tokenizer.patch_out.bias[0] = math.inf
    before = everything(learner)
    with pytest.raises(NonFiniteError, match=r"^tokenizer: 'mse' is inf at step 1;.*tokenizer_training\.optim\.lr"):
        learner.step(1)
    assert_equal(before, everything(learner))


def test_validation_is_the_peak_signal_to_noise_ratio_of_whole_frames(make, world):
    learner, clips = make(0), world.clips(latents=False)
    video = [clips.batch(i, TRAINING.batch, TRAINING.length) for i in range(2)]
    with torch.no_grad():
        errors = []
        for clip in video:
            latents = learner.tokenizer.encode(clip.video_BTHWC, clip.segment_BT)
            output = learner.tokenizer.decode(latents, clip.segment_BT)
            errors.append(float((output - clip.video_BTHWC / 255).square().mean()))
    assert learner.validate(clips, 2) == {"validation_psnr": pytest.approx(-10 * math.log10(sum(errors) / 2), abs=1e-3)}


def test_validation_changes_nothing(make):
    learner = make(0)
    learner.step(0)
    before = everything(learner)
    assert learner.validate(learner.clips, 1) == learner.validate(learner.clips, 1)
    assert_equal(before, everything(learner))


def test_without_perceptual_files_there_is_one_term(make):
    assert make(0).losses(0).keys() == {"mse"}


def test_the_perceptual_term_has_the_weight_of_the_config(make):
    learner = make(0, lpips_weight=0.3)
    assert learner.weight("lpips") == 0.3 and learner.weight("mse") == 1.0


@pytest.mark.parametrize("given", [{"perceptual_vgg": "vgg.pth"}, {"perceptual_linear": "lin.pth"}])
def test_one_of_the_two_perceptual_files_is_not_enough(given):
    with pytest.raises(ConfigError, match="both"):
        TokenizerTraining(**given)
