"""Faster ways to compute a frame: the numbers of the plain one."""

import pytest
import torch
from factories import random_clip, tiny_dynamics, tiny_heads
from torch import Tensor

import dreamer4.engine
from dreamer4.decode import through_all
from dreamer4.dynamics import Dynamics
from dreamer4.engine import FEW, Engine, accelerate, compiled_layers
from dreamer4.errors import ConfigError
from dreamer4.imagination import ImaginationConfig, WorldStream, imagine, noise_like
from dreamer4.rng import generator
from dreamer4.shortcut import ShortcutConfig

SHORTCUT = ShortcutConfig(k_max=8, context_noise=0.125)
SAMPLING = ImaginationConfig(sampling_steps=4, horizon=6, context=3)
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs need a GPU")


@torch.no_grad()
def frames(dynamics: Dynamics, engine: Engine, device: str = "cpu") -> Tensor:
    """Latents and features of six imagined frames, more than the window."""
    clip, draw = random_clip(2, 3).to(device), generator("engine")
    stream = accelerate(WorldStream(dynamics.to(device), SHORTCUT, SAMPLING, 2, clip.task_BT[:, -1]), engine)
    assert clip.latents_BTSD is not None
    stream.observe(clip.latents_BTSD, clip.act_in_BTA, clip.act_in_known_BT, noise_like(clip.latents_BTSD, draw))
    actions = torch.ones(2, 1, device=device)
    made = [stream.generate(actions, draw) for _ in range(6)]
    return torch.cat([torch.cat([z.flatten(2), h], dim=-1) for z, h in made if h is not None], dim=1).cpu()


@pytest.mark.slow
@pytest.mark.parametrize("one_by_one", [False, True], ids=["in one piece", "layer by layer"])
def test_compiled_frames_are_those_of_the_plain_stream(monkeypatch, one_by_one):
    monkeypatch.setattr(dreamer4.engine, "compiled_layers", lambda **_: compiled_layers(one_by_one))
    dynamics = tiny_dynamics()
    assert torch.allclose(frames(dynamics, "compiled"), frames(dynamics, "eager"), atol=1e-5)


@pytest.mark.parametrize(("streams", "one_by_one"), [(FEW, False), (FEW + 1, True)])
def test_few_streams_are_compiled_in_one_piece(monkeypatch, streams, one_by_one):
    asked = []
    monkeypatch.setattr(dreamer4.engine, "compiled_layers", lambda **how: asked.append(how) or through_all)
    accelerate(WorldStream(tiny_dynamics(), SHORTCUT, SAMPLING, streams, None), "compiled")
    assert asked == [{"one_by_one": one_by_one}]


@GPU
@pytest.mark.parametrize("engine", ["compiled", "graphed"])
def test_frames_on_a_gpu_are_those_of_the_plain_stream(engine: Engine):
    dynamics = tiny_dynamics()
    plain = frames(dynamics, "eager", "cuda")
    assert torch.allclose(frames(dynamics, engine, "cuda"), plain, atol=1e-4)


def test_a_graph_needs_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="on a GPU only"):
        frames(tiny_dynamics(), "graphed")


def test_a_stream_that_starts_anew_dreams_as_a_new_one():
    """And with other tasks: nothing of the rollout before is left."""
    dynamics, clip = tiny_dynamics(), random_clip(2, 3)
    heads = tiny_heads(dynamics)
    stream = WorldStream(dynamics, SHORTCUT, SAMPLING, 2, torch.ones(2, dtype=torch.long))
    for seed in (1, 2):
        arguments = dynamics, heads, heads.policy, clip, SHORTCUT, SAMPLING
        fresh = imagine(*arguments, generator("dream", seed))
        again = imagine(*arguments, generator("dream", seed), stream=stream)
        for name, value in vars(fresh).items():
            assert torch.allclose(getattr(again, name), value, atol=1e-5), name
