import json

import pytest

from cluster.config import RunConfig, resolve
from cluster.presets import PRESETS, doorkey, doorkey_large, laptop, minecraft, parameters, preset, smoke
from cluster.settings import differences, from_json, to_json
from dreamer4.errors import ConfigError


@pytest.mark.parametrize("name", PRESETS)
def test_preset_constructs_and_survives_json(name):
    config = preset(name)
    assert from_json(RunConfig, json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize("build", [laptop, smoke, doorkey, doorkey_large])
def test_embedded_presets_fit_their_environment(build):
    resolve(build())


@pytest.mark.parametrize("name", PRESETS)
def test_world_model_of_a_preset_fits_its_tokenizer(name):
    """Also where the environment isn't at hand to resolve it."""
    config = preset(name)
    tokenizer, dynamics = config.tokenizer, config.dynamics
    if name not in ("laptop", "smoke", "doorkey", "doorkey-large"):
        packed = (tokenizer.latents // tokenizer.pack, tokenizer.channels * tokenizer.pack)
        assert (dynamics.latents, dynamics.channels) == packed


def test_minecraft_has_the_papers_parameters():
    """400 M and 1.6 B, within a tenth."""
    tokenizer, dynamics = parameters(minecraft())
    assert tokenizer == pytest.approx(400e6, rel=0.1)
    assert dynamics == pytest.approx(1.6e9, rel=0.1)


def test_large_doorkey_has_ten_times_the_parameters():
    small, large = (parameters(resolve(build())) for build in (doorkey, doorkey_large))
    assert all(9.5 < ten / one < 11.5 for one, ten in zip(small, large, strict=True)), (small, large)


def test_minecraft_has_the_papers_numbers():
    config = minecraft()
    assert config.tokenizer.patches == 960
    assert (config.tokenizer.latents, config.tokenizer.channels) == (512, 16)
    assert (config.dynamics.latents, config.dynamics.channels, config.dynamics.window) == (256, 32, 192)
    assert (config.tokenizer.mask_max, config.tokenizer.lpips_weight) == (0.9, 0.2)
    training = config.dynamics_training
    assert (training.length, training.long_length, training.image_share) == (64, 256, 0.3)
    assert (config.imagination.sampling_steps, config.shortcut.context_noise, config.shortcut.ramp) == (4, 0.1, True)
    assert (config.shortcut.context_share, config.shortcut.pure_noise, config.shortcut.bootstrap_rows) == (0, 0, None)
    assert (config.policy.discount, config.policy.alpha, config.policy.beta) == (0.997, 0.5, 0.3)
    assert config.heads.offsets == 8
    assert [part.size for part in config.dynamics.space.parts] == [23, 121]


def test_smoke_is_the_laptops_path_with_less_of_everything():
    amounts = {"frames", "shard_frames", "validation", "steps", "batch", "warmup_steps", "save_every"}
    amounts |= {"episodes", "parallel", "actors", "windows"}
    changed = differences(laptop(), smoke())
    assert {difference.key.rpartition(".")[2] for difference in changed} <= amounts
    assert all(d.second <= d.first for d in changed if not d.key.endswith("validation"))


def test_unknown_preset_suggests_the_nearest():
    with pytest.raises(ConfigError, match="'laptp'; did you mean 'laptop'"):
        preset("laptp")
