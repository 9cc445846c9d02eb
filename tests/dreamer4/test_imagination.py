"""Imagination: the world stream, its agreement with batch passes, and the alignment of a rollout."""

from dataclasses import replace

import pytest
import torch
from factories import MIXED_SPACE, random_clip, tiny_dynamics, tiny_heads
from torch import Tensor

from dreamer4 import imagination
from dreamer4.agent import Heads
from dreamer4.dynamics import Dynamics
from dreamer4.errors import ConfigError, DataError
from dreamer4.imagination import Dream, ImaginationConfig, WorldStream, imagine, last_frames, noise_like
from dreamer4.rng import generator
from dreamer4.shortcut import ShortcutConfig, corrupt, sample_frame
from dreamer4.types import Clip

SHORTCUT = ShortcutConfig(k_max=8, context_noise=0.125)


def config(**changes) -> ImaginationConfig:
    return ImaginationConfig(**{"sampling_steps": 4, "horizon": 5, "context": 3, **changes})


def dream(dynamics: Dynamics, heads: Heads, clip: Clip, seed: int = 0, **changes) -> Dream:
    settings = {name: changes.pop(name) for name in ("sampling_steps", "horizon", "features") if name in changes}
    draw = generator("dream", seed)
    return imagine(dynamics, heads, heads.policy, clip, SHORTCUT, config(**settings), draw, **changes)


@torch.no_grad()
def batch_features(dynamics: Dynamics, clip: Clip, noise: Tensor) -> Tensor:
    """The pass of training, at the level and step of the context."""
    level = torch.full((clip.batch, clip.length), SHORTCUT.context_idx)
    noised = corrupt(clip.latents_BTSD, noise, level / SHORTCUT.k_max)
    step = torch.full_like(level, SHORTCUT.finest)
    return dynamics(
        noised, level, step, clip.act_in_BTA, clip.act_in_known_BT, clip.segment_BT, clip.task_BT
    ).features_BTM


@torch.no_grad()
def observed_features(dynamics: Dynamics, clip: Clip, noise: Tensor, chunks: list[int]) -> Tensor:
    stream = WorldStream(dynamics, SHORTCUT, config(), clip.batch, clip.task_BT[:, -1])
    parts = zip(
        *(x.split(chunks, dim=1) for x in (clip.latents_BTSD, clip.act_in_BTA, clip.act_in_known_BT, noise)),
        strict=True,
    )
    return torch.cat([stream.observe(*part) for part in parts], dim=1)


class Recorder:
    """Keeps the arguments of every pass of the dynamics."""

    def __init__(self, dynamics: Dynamics):
        self.passes: list[dict[str, Tensor]] = []
        names = ("latents", "tau_idx", "step_idx", "act_in", "known", "segment", "task", "cache", "commit")
        dynamics.register_forward_pre_hook(
            lambda module, arguments: self.passes.append(dict(zip(names, arguments, strict=True)))
        )


# Agreement


@pytest.mark.parametrize("chunks", [[1] * 12, [8, 1, 1, 1, 1]])
def test_observed_frames_have_the_features_of_the_training_pass(chunks: list[int]):
    """Invariant 54: (a) one batch pass, (c) frame by frame through the cache, beyond the reach."""
    dynamics, clip = tiny_dynamics(), random_clip(3, 12)
    noise = noise_like(clip.latents_BTSD, generator("noise"))
    expected = batch_features(dynamics, clip, noise)
    assert torch.allclose(observed_features(dynamics, clip, noise, chunks), expected, atol=1e-5)


def test_other_noise_gives_other_features():
    """Invariant 54, negative control."""
    dynamics, clip = tiny_dynamics(), random_clip(3, 6)
    first, second = (batch_features(dynamics, clip, noise_like(clip.latents_BTSD, generator(i))) for i in (0, 1))
    assert not torch.allclose(first, second, atol=1e-2)


@pytest.fixture
def noises(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """All noise that imagination draws: the context's, then per frame where it starts from and that of its commit."""
    drawn: list[Tensor] = []
    monkeypatch.setattr(imagination, "noise_like", lambda *like: drawn.append(noise_like(*like)) or drawn[-1])
    return drawn


def test_imagined_frames_have_the_features_of_the_training_pass(noises: list[Tensor]):
    """Invariant 54: (b) the commit path; the dream is laid behind its context and passed as one batch."""
    dynamics, heads, clip = tiny_dynamics(), tiny_heads(tiny_dynamics()), random_clip(3, 4)
    result = dream(dynamics, heads, clip)
    whole = replace(
        random_clip(3, 9),
        act_in_BTA=torch.cat([clip.act_in_BTA, result.act_out_BTA], dim=1),
        latents_BTSD=torch.cat([clip.latents_BTSD, result.latents_BTSD], dim=1),
    )
    expected = batch_features(dynamics, whole, torch.cat([noises[0], *noises[2::2]], dim=1))
    assert torch.allclose(result.features_BTM, expected[:, 3:], atol=1e-5)


@torch.no_grad()
def dream_without_cache(dynamics: Dynamics, heads: Heads, clip: Clip, horizon: int, features_of: str) -> Dream:
    """The same rollout with the whole history in every pass, and noise from an equal generator."""
    draw, steps = generator("dream", 0), 4
    level = torch.full((clip.batch, clip.length), SHORTCUT.context_idx)
    noised = corrupt(clip.latents_BTSD, noise_like(clip.latents_BTSD, draw), level / SHORTCUT.k_max)
    history = [noised, level, torch.full_like(level, SHORTCUT.finest), clip.act_in_BTA, clip.act_in_known_BT]
    collected: dict[str, list[Tensor]] = {name: [] for name in ("features", "action", "log_prob", "frame")}

    def run(*new: Tensor) -> tuple[Tensor, Tensor]:
        inputs = [torch.cat([old, x], dim=1) for old, x in zip(history, new, strict=True)]
        task = torch.zeros(inputs[1].shape, dtype=torch.long)
        segment = torch.cat([clip.segment_BT, clip.segment_BT[:, -1:].expand(-1, task.shape[1] - clip.length)], dim=1)
        output = dynamics(*inputs, segment, task)
        return output.clean_BTSD[:, -1:], output.features_BTM[:, -1:]

    empty = [x[:, :0] for x in history]
    collected["features"].append(run(*empty)[1])
    for _ in range(horizon):
        distribution = heads.policy(collected["features"][-1]).at(0)
        action = distribution.sample(draw)
        known = torch.ones(clip.batch, 1, dtype=torch.bool)
        passes: list[tuple[Tensor, ...]] = []

        def denoise(z: Tensor, tau_idx: Tensor, step_idx: Tensor, action=action, known=known, passes=passes) -> Tensor:
            passes.append((z, tau_idx, step_idx, action, known))
            return run(*passes[-1])[0]

        frame = sample_frame(denoise, noise_like(clip.latents_BTSD[:, :1], draw), steps, SHORTCUT.k_max)
        noise = noise_like(frame, draw)
        commit = passes[-1]
        if features_of == "commit":
            tau_idx = torch.full_like(passes[-1][1], SHORTCUT.context_idx)
            noised = corrupt(frame, noise, tau_idx / SHORTCUT.k_max)
            commit = (noised, tau_idx, torch.full_like(tau_idx, SHORTCUT.finest), action, known)
        collected["features"].append(run(*commit)[1])
        history = [torch.cat([old, x], dim=1) for old, x in zip(history, commit, strict=True)]
        collected["action"].append(action)
        collected["log_prob"].append(distribution.log_prob(action))
        collected["frame"].append(frame)
    features, action, log_prob, frame = (torch.cat(x, dim=1) for x in collected.values())
    arrived = features[:, 1:]
    return Dream(features, action, log_prob, heads.reward.predict(arrived), heads.continues.predict(arrived), frame)


@pytest.mark.parametrize("features_of", ["commit", "denoise"])
@pytest.mark.parametrize("segments", ["one", "two"])
def test_the_same_seed_gives_the_same_rollout_with_and_without_cache(features_of: str, segments: str):
    """Invariants 14, 19 and 20: seven imagined frames, more than the window, after one episode or a change of two."""
    rows = {"one": [[0, 0, 0, 0], [0, 0, 0, 0]], "two": [[0, 0, 1, 1], [0, 0, 0, 1]]}[segments]
    clip = random_clip(2, 4, segment_BT=torch.tensor(rows))
    dynamics, heads = tiny_dynamics(), tiny_heads(tiny_dynamics())
    cached = dream(dynamics, heads, clip, horizon=7, features=features_of)
    plain = dream_without_cache(dynamics, heads, clip, 7, features_of)
    for name, expected in vars(plain).items():
        assert torch.allclose(getattr(cached, name), expected, atol=1e-4), name


def test_the_same_seed_gives_the_same_rollout_to_the_bit():
    """Invariant 19, with another seed as negative control."""
    dynamics, heads, clip = tiny_dynamics(), tiny_heads(tiny_dynamics()), random_clip(2, 4)
    first, second, other = (dream(dynamics, heads, clip, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(getattr(second, name), value) for name, value in vars(first).items())
    assert not torch.equal(first.latents_BTSD, other.latents_BTSD)


# Cache


@torch.no_grad()
def test_denoising_never_changes_the_cache_and_any_number_of_steps_leaves_room_for_the_same_commit():
    """Invariant 15, for the world stream: 1 to 8 denoising passes before the same observation."""
    dynamics, clip = tiny_dynamics(), random_clip(2, 6)
    noise, caches = noise_like(clip.latents_BTSD, generator("noise")), []
    for passes in (1, 4, 16):
        stream = WorldStream(dynamics, SHORTCUT, config(), 2, clip.task_BT[:, -1])
        for t in range(6):
            for i in range(passes):
                z, index = torch.randn(2, 1, 2, 6, generator=generator(t, i)), torch.full((2, 1), 0)
                stream._pass(z, index, index, clip.act_in_BTA[:, t : t + 1], clip.act_in_known_BT[:, t : t + 1])
            stream.observe(
                *(x[:, t : t + 1] for x in (clip.latents_BTSD, clip.act_in_BTA, clip.act_in_known_BT, noise))
            )
        caches.append([*stream.cache.keys, *stream.cache.values, stream.cache.valid_BC, stream.cache.frame_BC])
    for other in caches[1:]:
        assert all(torch.equal(a, b) for a, b in zip(caches[0], other, strict=True))


@torch.no_grad()
def test_committed_frames_are_never_noised_again():
    """Invariant 20: what the ring holds of a frame stays the same to the bit until the frame leaves."""
    dynamics, clip = tiny_dynamics(window=6), random_clip(2, 3)
    stream = WorldStream(dynamics, SHORTCUT, config(), 2, clip.task_BT[:, -1])
    stream.observe(
        clip.latents_BTSD, clip.act_in_BTA, clip.act_in_known_BT, noise_like(clip.latents_BTSD, generator("noise"))
    )
    before = [keys[..., :3, :].clone() for keys in stream.cache.keys]
    draw = generator("generate")
    for _ in range(2):
        stream.generate(torch.ones(2, 1), draw)
    assert all(torch.equal(old, keys[..., :3, :]) for old, keys in zip(before, stream.cache.keys, strict=True))
    assert stream.cache.position_B.tolist() == [5, 5]


@pytest.mark.parametrize("features", ["commit", "denoise"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_all_passes_of_a_rollout_use_trained_pairs_of_level_and_step(steps: int, features: str):
    """Invariants 17 and 18: tau below 1 and a multiple of d, for any number of steps; one commit per frame."""
    dynamics, heads, clip = tiny_dynamics(), tiny_heads(tiny_dynamics()), random_clip(2, 3)
    recorder = Recorder(dynamics)
    result = dream(dynamics, heads, clip, sampling_steps=steps, features=features)
    assert result.latents_BTSD.shape == (2, 5, 2, 6)
    for one in recorder.passes:
        assert (one["tau_idx"] < 8).all() and (one["tau_idx"] % (8 >> one["step_idx"]) == 0).all()
    per_frame = [False] * steps + [True] if features == "commit" else [False] * (steps - 1) + [True]
    assert [one["commit"] for one in recorder.passes] == [True] + 5 * per_frame


# Alignment


def test_an_action_travels_into_the_block_of_the_next_frame():
    """Invariant 50: and the first one is chosen at the context's last frame."""
    dynamics, heads, clip = tiny_dynamics(), tiny_heads(tiny_dynamics()), random_clip(3, 4)
    recorder = Recorder(dynamics)
    result = dream(dynamics, heads, clip)
    context, *imagined = recorder.passes
    assert torch.equal(context["act_in"], clip.act_in_BTA) and torch.equal(context["known"], clip.act_in_known_BT)
    for t in range(5):
        for one in imagined[5 * t : 5 * t + 5]:
            assert torch.equal(one["act_in"][:, 0], result.act_out_BTA[:, t])
            assert one["known"].all()


@pytest.mark.parametrize("space", ["discrete", "mixed"])
def test_log_probabilities_and_predictions_belong_to_the_stored_features(space: str):
    """Invariants 50 and 51: recomputed from h_t; rewards and continues from the features on arrival."""
    dynamics = tiny_dynamics(**({"actions": MIXED_SPACE.to_json()} if space == "mixed" else {}))
    heads, clip = tiny_heads(dynamics), random_clip(3, 4, dynamics.config.space)
    result = dream(dynamics, heads, clip)
    assert result.features_BTM.shape == (3, 6, 16)
    assert result.act_out_BTA.shape == (3, 5, dynamics.config.space.columns)
    dynamics.config.space.check(result.act_out_BTA.numpy())
    with torch.no_grad():
        log_prob = heads.policy(result.features_BTM[:, :-1]).at(0).log_prob(result.act_out_BTA)
        assert torch.allclose(result.log_prob_BT, log_prob, atol=1e-5)
        assert torch.allclose(result.reward_BT, heads.reward.predict(result.features_BTM[:, 1:]), atol=1e-5)
        assert torch.allclose(result.continue_BT, heads.continues.predict(result.features_BTM[:, 1:]), atol=1e-5)
    assert not any(value.requires_grad for value in vars(result).values())


def test_played_actions_replace_the_policys():
    dynamics, heads, clip = tiny_dynamics(), tiny_heads(tiny_dynamics()), random_clip(3, 4)
    played = torch.randint(3, (3, 5, 1), generator=generator("played")).float()
    first, second = (dream(dynamics, heads, clip, played_BTA=actions) for actions in (played, (played + 1) % 3))
    assert torch.equal(first.act_out_BTA, played)
    assert not torch.allclose(first.latents_BTSD, second.latents_BTSD, atol=1e-3)


def test_shuffled_actions_reach_the_world_and_not_the_record():
    dynamics, heads, clip = tiny_dynamics(), tiny_heads(tiny_dynamics()), random_clip(3, 4)
    played = torch.tensor([0.0, 1, 2])[:, None, None].expand(3, 5, 1)
    recorder = Recorder(dynamics)
    result = dream(dynamics, heads, clip, played_BTA=played, shuffle_actions=True)
    assert torch.equal(result.act_out_BTA, played)
    assert recorder.passes[-1]["act_in"][:, 0, 0].tolist() == [2, 0, 1]


def test_rows_are_rollouts_of_their_own(noises: list[Tensor]):
    """Another context in one row leaves the other rows' features alone until actions are drawn."""
    dynamics, heads, clip = tiny_dynamics(), tiny_heads(tiny_dynamics()), random_clip(3, 4)
    played = torch.zeros(3, 5, 1)
    latents = clip.latents_BTSD.clone()
    latents[1] = -latents[1]
    first = dream(dynamics, heads, clip, played_BTA=played)
    second = dream(dynamics, heads, replace(clip, latents_BTSD=latents), played_BTA=played)
    same = (first.features_BTM == second.features_BTM).flatten(1).all(1)
    assert same.tolist() == [True, False, True]


def test_the_task_of_the_last_frame_holds_along_the_rollout():
    dynamics, heads, clip = tiny_dynamics(), tiny_heads(tiny_dynamics()), random_clip(2, 4)
    recorder = Recorder(dynamics)
    dream(dynamics, heads, replace(clip, task_BT=torch.tensor([[0, 0, 0, 1], [1, 1, 1, 0]])))
    assert all(one["task"].unique(dim=1).flatten().tolist() == [1, 0] for one in recorder.passes if one["commit"])


def test_a_stream_without_a_task_has_no_features_and_the_same_world():
    """Invariant 6, for generated frames."""
    dynamics, clip = tiny_dynamics(), random_clip(2, 6)
    frames: list[Tensor] = []
    for task in (None, torch.zeros(2, dtype=torch.long)):
        stream, draw = WorldStream(dynamics, SHORTCUT, config(), 2, task), generator("world")
        inputs = (clip.latents_BTSD, clip.act_in_BTA, clip.act_in_known_BT, noise_like(clip.latents_BTSD, draw))
        with torch.no_grad():
            observed = stream.observe(*inputs)
            frame, feature = stream.generate(torch.ones(2, 1), draw)
        assert (observed is None) == (feature is None) == (task is None)
        frames.append(frame)
    assert torch.allclose(*frames, atol=1e-5)


def test_a_world_without_ends_always_continues():
    dynamics, clip = tiny_dynamics(), random_clip(2, 4)
    result = dream(dynamics, tiny_heads(dynamics, continues=False), clip)
    assert torch.equal(result.continue_BT, torch.ones(2, 5))


def test_dreams_under_autocast_are_fp32():
    """Invariant 29: and near, over one step, where no sampled action has gone another way."""
    dynamics, heads, clip = tiny_dynamics(), tiny_heads(tiny_dynamics()), random_clip(2, 4)
    played = torch.zeros(2, 1, 1)
    expected = dream(dynamics, heads, clip, horizon=1, played_BTA=played)
    with torch.autocast("cpu", torch.bfloat16):
        result = dream(dynamics, heads, clip, horizon=1, played_BTA=played)
    for name, value in vars(result).items():
        assert value.dtype == torch.float32, name
    assert (result.latents_BTSD - expected.latents_BTSD).norm() / expected.latents_BTSD.norm() < 0.1


# Contexts and mistakes


def test_the_end_of_a_clip_is_a_clip():
    clip = random_clip(2, 7)
    end = last_frames(clip, 3)
    assert (end.batch, end.length) == (2, 3)
    assert torch.equal(end.latents_BTSD, clip.latents_BTSD[:, 4:])
    assert torch.equal(end.act_in_known_BT, clip.act_in_known_BT[:, 4:])
    assert end.video_BTHWC is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": "noise"}, "imagination.features must be 'commit' or 'denoise', got 'noise'"),
        ({"engine": "steam"}, "imagination.engine must be eager, compiled or graphed, got 'steam'"),
        ({"horizon": 0}, r"horizon \(0\) and context \(3\) must be at least 1"),
        ({"context": 0}, r"horizon \(5\) and context \(0\) must be at least 1"),
    ],
)
def test_impossible_rollouts_are_refused(changes: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_context_of_frames_is_refused() -> None:
    dynamics = tiny_dynamics()
    clip = replace(random_clip(2, 3), latents_BTSD=None)
    with pytest.raises(DataError, match="clip of latents"):
        dream(dynamics, tiny_heads(dynamics), clip)
