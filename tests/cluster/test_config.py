import json
from dataclasses import replace

import pytest

from cluster.config import CONTROLS, RunConfig, configure, resolve
from cluster.presets import laptop
from cluster.settings import override
from dreamer4.actions import ActionSpace
from dreamer4.envs.registry import EnvSpec
from dreamer4.errors import ConfigError
from dreamer4.tokenizer import TokenizerConfig

ENV = EnvSpec("made up", (40, 40, 3), ActionSpace.discrete(5), ("one", "two"))


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["dynamics.k_max=16"], ["dynamics.k_max (16)", "shortcut.k_max (8)"]),
        (["imagination.sampling_steps=3"], ["sampling_steps", "power of two", "got 3"]),
        (["imagination.sampling_steps=16"], ["sampling_steps", "(8)", "got 16"]),
        (["imagination.context=9"], ["imagination.context (9)", "dynamics.window (8)"]),
        (["dynamics_training.long_length=8"], ["long_length (8)", "dynamics.window (8)"]),
        (["dynamics.depth=5"], ["dynamics:", "depth (5)", "time_every (2)"]),
        (["tokenizer.width=30"], ["tokenizer:", "width 30"]),
        (["tokenizer.decoder_depth=5"], ["tokenizer:", "depth (5)"]),
        (['controls=["filtered"]'], ["controls", "filtered_bc", "'filtered'"]),
        (["resources.device=cuda"], ["resources.trainer_gpus"]),
        (["resources.workers=0"], ["resources.workers", "at least 1", "0"]),
        (["resources.workers=2", "resources.max_workers=1"], ["resources.workers (2)", "resources.max_workers (1)"]),
        (["resources.shards=3"], ["resources.shards (3)", "dynamics.heads (4)", "dynamics.kv_heads (4)"]),
        (["resources.worker_gpus=-1"], ["negative"]),
        (["resources.shards=2", "resources.worker_gpus=0.5"], ["2 shards", "resources.worker_gpus is 0.5"]),
        (["evaluation.episodes=0"], ["evaluation.episodes", "at least 1"]),
        (["agent_training.steps=0"], ["agent_training.steps", "at least 1"]),
        (["data.half_distinct=true", 'data.mixture=["films"]'], ["data.half_distinct", "data.mixture", "one of them"]),
        (["data.validation=0"], ["data.validation", "0.0"]),
        (["data.demonstrator.careful_share=1.5"], ["data.demonstrator.careful_share", "1.5"]),
        (["data.demonstrator.lost_share=-0.1"], ["data.demonstrator.lost_share", "-0.1"]),
        (
            ["shortcut.drafts=true", "shortcut.context_share=0"],
            ["agent_training.context_share (0.75)", "shortcut.drafts"],
        ),
        (["shortcut.pure_noise=-0.1"], ["shortcut.pure_noise", "-0.1"]),
    ],
)
def test_impossible_combinations_are_refused_with_the_numbers(assignments, words):
    with pytest.raises(ConfigError) as caught:
        override(laptop(), assignments)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_defaults_are_possible():
    RunConfig(env="anything")


def test_coupled_keys_may_change_together():
    changed = override(laptop(), ["dynamics.k_max=16", "shortcut.k_max=16", "imagination.sampling_steps=16"])
    assert changed.dynamics.k_max == changed.imagination.sampling_steps == 16


def test_all_controls_may_be_asked_for():
    assert override(laptop(), [f"controls={json.dumps(CONTROLS)}"]).controls == CONTROLS


def test_resolve_fills_in_what_tokenizer_and_environment_fix():
    config = replace(laptop(), tokenizer=replace(laptop().tokenizer, latents=6, channels=5, pack=3))
    dynamics = resolve(config, ENV).dynamics
    assert (dynamics.latents, dynamics.channels, dynamics.space, dynamics.tasks) == (2, 15, ENV.actions, 2)


def test_resolve_looks_the_environment_up_and_is_idempotent():
    resolved = resolve(laptop())
    assert resolved.dynamics.space == ActionSpace.discrete(3)
    assert resolve(resolved) == resolved


def test_tokenizer_for_other_frames_is_refused():
    with pytest.raises(ConfigError, match=r"frames of \(48, 40, 3\).*tokenizer.frame is \(40, 40, 3\).*=\[48,40,3\]"):
        resolve(laptop(), replace(ENV, frame_shape=(48, 40, 3)))


def test_another_environment_needs_its_frame_size_only():
    env, frame = "env=MiniGrid-Dynamic-Obstacles-6x6-v0", "tokenizer.frame=[48,48,3]"
    assert configure(laptop(), [env, frame]).tokenizer.frame == (48, 48, 3)
    with pytest.raises(ConfigError, match=r"tokenizer\.frame"):
        configure(laptop(), [env])


def test_unknown_environment_is_named():
    with pytest.raises(ConfigError, match="'MiniGrid-Dynamic-Obstacles-5x5-v9'"):
        configure(laptop(), ["env=MiniGrid-Dynamic-Obstacles-5x5-v9"])


def test_perceptual_term_without_a_network_is_refused():
    """A weight that is silently not applied would be worse."""
    config = replace(laptop(), tokenizer=replace(laptop().tokenizer, lpips_weight=0.2))
    with pytest.raises(ConfigError, match=r"lpips_weight is 0\.2.*perceptual_vgg"):
        resolve(config, ENV)
    files = replace(laptop().tokenizer_training, perceptual_vgg="a", perceptual_linear="b")
    resolve(replace(config, tokenizer_training=files), ENV)


@pytest.mark.parametrize("key", ["dynamics.latents", "dynamics.channels", "dynamics.tasks", "dynamics.actions"])
def test_computed_keys_cannot_be_set(key):
    with pytest.raises(ConfigError, match=f"{key} follows from"):
        configure(laptop(), [f"{key}=3"])


def test_configure_overrides_and_resolves():
    config = configure(laptop(), ["tokenizer.channels=6", "seed=3"])
    assert (config.seed, config.dynamics.channels) == (3, 6 * config.tokenizer.pack)
    assert isinstance(config.tokenizer, TokenizerConfig)
