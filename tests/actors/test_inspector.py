"""The inspector's numbers in worlds where they are known.

Latents are frame numbers here, and the tokenizer looks the frame up. A world model that repeats a latent is then
exactly the baseline that repeats the last frame, and one that adds 1 is a perfect prophet.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from factories import tiny_dynamics, tiny_heads, tiny_tokenizer
from states import assert_equal, same
from torch import Tensor, nn
from worlds import World

import actors.lens
from actors.collector import Collector
from actors.inspector import Inspector
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.latents import LatentDataset
from dreamer4.data.rows import Pieces
from dreamer4.data.writer import DatasetWriter
from dreamer4.dynamics import DynamicsOutput
from dreamer4.envs.planners import Mixture
from dreamer4.envs.registry import spec
from dreamer4.imagination import Dream, ImaginationConfig
from dreamer4.shortcut import ShortcutConfig
from dreamer4.types import Clip

GRID = "MiniGrid-Dynamic-Obstacles-5x5-v0"
CONTEXT, STEPS, MANY = 3, 4, 10_000
IMAGINATION = ImaginationConfig(sampling_steps=2, horizon=STEPS, context=CONTEXT)
SHORTCUT = ShortcutConfig(k_max=8)
Forecast = Callable[[Clip, int], Tensor]  # the frame number of every imagined step, [B, T]


class LookUp(nn.Module):
    """A tokenizer whose latents are frame numbers; remembers the segments it was told."""

    def __init__(self, dataset: EpisodeDataset):
        super().__init__()
        self.dataset, self.segments = dataset, []

    def decode(self, latents_BTSD: Tensor, segment_BT: Tensor) -> Tensor:
        self.segments.append(segment_BT)
        number = latents_BTSD[..., 0, 0].round().long().clamp(0, self.dataset.frame_count - 1).numpy()
        return torch.from_numpy(self.dataset.frames.take(number)).float() / 255


def numbered(dataset: EpisodeDataset) -> LatentDataset:
    return LatentDataset(Pieces([np.arange(dataset.frame_count, dtype=np.float32).reshape(-1, 1, 1)]), "frame numbers")


def validation(dataset: EpisodeDataset) -> np.ndarray:
    return np.arange(dataset.episode_count) % 3 == 0


def inspector(dataset: EpisodeDataset, name: str = "walk", **changes) -> Inspector:
    dynamics = tiny_dynamics(latents=1, channels=1, actions=dataset.manifest.actions.to_json())
    heads = tiny_heads(dynamics)
    arguments = {
        "tokenizer": LookUp(dataset),
        "dynamics": dynamics,
        "heads": heads,
        "policies": {"bc": heads.policy},
        "dataset": dataset,
        "latents": numbered(dataset),
        "validation_E": validation(dataset),
        "shortcut": SHORTCUT,
        "imagination": IMAGINATION,
        "env_name": name,
        "seed": 5,
    }
    return Inspector(**{**arguments, **changes})


def repeat(context: Clip, steps: int) -> Tensor:
    return context.latents_BTSD[:, -1:, 0, 0].expand(-1, steps)


def count_on(context: Clip, steps: int) -> Tensor:
    return context.latents_BTSD[:, -1:, 0, 0] + torch.arange(1, steps + 1)


@pytest.fixture
def imagines(monkeypatch: pytest.MonkeyPatch) -> Callable[[Forecast], list[Tensor]]:
    """Replaces the world model's rollouts by a forecast; gives the list of what was played in them."""

    def use(forecast: Forecast) -> list[Tensor]:
        played = []

        def imagine(dynamics, heads, policy, context, shortcut, config, generator, played_BTA=None) -> Dream:
            played.append(played_BTA)
            nothing = torch.zeros(context.batch, config.horizon)
            frames = forecast(context, config.horizon)[..., None, None]
            features = torch.zeros(context.batch, config.horizon + 1, 16)
            return Dream(features, nothing[..., None], nothing, nothing + 1, nothing + 0.5, frames)

        monkeypatch.setattr(actors.lens, "imagine", imagine)
        return played

    return use


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    """Recordings of a real grid world."""
    folder, env = tmp_path_factory.mktemp("grid"), spec(GRID)
    with DatasetWriter(folder, GRID, env.frame_shape, env.actions, env.tasks) as writer:
        for episode in Collector(GRID, Mixture(), seed=3, max_frames=12).collect(0, 24):
            writer.add(episode)
    return EpisodeDataset.open(folder)


# Pixels


def test_exact_tokenizer_has_no_error_and_its_frames_are_shown(world: World):
    found = inspector(world.dataset).reconstructions(MANY)
    assert found["psnr"] == math.inf
    assert np.array_equal(found["real"], found["reconstructed"])
    assert found["real"].dtype == np.uint8 and found["real"].shape[1:] == world.dataset.manifest.frame


def test_mean_image_is_of_the_training_episodes(world: World):
    """Its decibels, computed from the recordings that were written."""
    training = [w.frames_THWC for i, w in enumerate(world.walks) if i % 3]
    frames = np.concatenate([w.frames_THWC[:-1] for i, w in enumerate(world.walks) if i % 3 == 0]) / 255
    error = ((np.concatenate(training).mean(axis=0) / 255 - frames) ** 2).mean()
    found = inspector(world.dataset).reconstructions(MANY)
    assert found["n"] == len(frames)
    assert found["mean_image_psnr"] == pytest.approx(-10 * math.log10(error), abs=1e-4)


def test_model_that_copies_equals_the_copy_baseline(world: World, imagines):
    imagines(repeat)
    found = inspector(world.dataset).horizon(MANY, STEPS)
    assert np.array_equal(found["model_psnr"], found["copy_psnr"])
    assert np.isfinite(found["copy_psnr"]).all() and (found["tokenizer_psnr"] == math.inf).all()


def test_copy_baseline_is_the_error_of_frames_so_many_steps_apart(world: World, imagines):
    imagines(repeat)
    found = inspector(world.dataset).horizon(MANY, STEPS)
    videos = [walk.frames_THWC / 255 for i, walk in enumerate(world.walks) if i % 3 == 0]
    for step in range(1, STEPS + 1):
        pairs = [((v[step:] - v[:-step]) ** 2).mean(axis=(1, 2, 3)) for v in videos if len(v) > step]
        errors = np.concatenate(pairs)
        assert found["n"][step - 1] == len(errors)
        assert found["copy_psnr"][step - 1] == pytest.approx(-10 * math.log10(errors.mean()), abs=1e-4)


def test_prophet_has_no_error_up_to_the_ends_of_episodes(world: World, imagines):
    """Beyond them it shows other frames, which must not count."""
    imagines(count_on)
    found = inspector(world.dataset).horizon(MANY, STEPS)
    assert (found["model_psnr"] == math.inf).all()
    assert np.array_equal(found["imagined"][found["known"]], found["real"][found["known"]])


def test_imagined_frames_belong_to_the_last_episode_of_the_context(world: World, imagines):
    """The decoder must not see the end of another recording in them."""
    imagines(repeat)
    looking = inspector(world.dataset)
    looking.horizon(MANY, STEPS)
    for segment_BT in looking.lens.tokenizer.segments:
        assert (segment_BT[:, CONTEXT - 1 :] == segment_BT[:, CONTEXT - 1 : CONTEXT]).all()
    assert (torch.cat(looking.lens.tokenizer.segments).diff(dim=1) > 0).any()  # contexts of two episodes are there


def test_late_prophet_is_found_out(world: World, imagines):
    """Negative control: the same frames one step late."""
    imagines(lambda context, steps: count_on(context, steps) - 1)
    found = inspector(world.dataset).horizon(MANY, STEPS)
    assert np.isfinite(found["model_psnr"]).all()


def test_played_actions_are_those_that_led_from_frame_to_frame(world: World, imagines):
    """Chosen at the context's last frame and at those that follow; one frame later they would be others."""
    played = imagines(repeat)
    looking = inspector(world.dataset)
    looking.horizon(MANY, STEPS)
    windows = looking.windows.uniform("horizon", MANY, STEPS)
    data, ends = world.dataset, windows.context_NC[:, -1:] + np.arange(STEPS)
    ends = np.minimum(ends, data.frame_count - 1)
    known = windows.known_NH
    assert np.array_equal(torch.cat(played).numpy()[known], data.act_out_FA[ends][known])
    later = np.minimum(ends + 1, data.frame_count - 1)
    assert not np.array_equal(torch.cat(played).numpy()[known], data.act_out_FA[later][known])


def test_step_that_no_window_reaches_has_no_number(world: World, imagines):
    imagines(repeat)
    found = inspector(world.dataset).horizon(20, 12)  # walks have at most 9 frames
    assert found["n"][-1] == 0 and np.isnan(found["copy_psnr"][-1])


# The agent's cell


def test_prophet_knows_the_agents_cell_and_the_balls(grid: EpisodeDataset, imagines):
    imagines(count_on)
    found = inspector(grid, GRID).agent_cell(MANY, STEPS)
    assert (found["horizon"]["model"] == 1).all() and (found["horizon"]["tokenizer"] == 1).all()
    assert np.array_equal(found["horizon"]["imagined_balls"], found["horizon"]["real_balls"])
    assert found["one_step"]["moved_model"] == 1


def test_copying_model_is_right_where_the_agent_did_not_move(grid: EpisodeDataset, imagines):
    imagines(repeat)
    found = inspector(grid, GRID).agent_cell(MANY, STEPS)
    one, horizon = found["one_step"], found["horizon"]
    assert np.array_equal(horizon["model"], horizon["copy"])
    assert 0 < one["copy"] < 1 and one["copy"] == pytest.approx(1 - one["moved_n"] / one["n"])
    assert one["moved_n"] > 0 and one["moved_model"] == 0
    assert (horizon["copy"][1:] < one["copy"]).all()


def test_agents_moves_are_the_environments(grid: EpisodeDataset, imagines):
    """The agent can move only where it was told to go forward, action 2."""
    imagines(repeat)
    looking = inspector(grid, GRID)
    found = looking.agent_cell(MANY, 1)["one_step"]
    ends = looking.windows.uniform("horizon", MANY, 1).context_NC[:, -1]
    assert 0 < found["moved_n"] <= (np.asarray(grid.act_out_FA)[ends, 0] == 2).sum()


def test_other_environments_have_no_cells(world: World):
    assert inspector(world.dataset).agent_cell(MANY, STEPS) == {}


# Actions


class Actor(nn.Module):
    """A world model whose next latent is the action (or 0, if it is deaf); remembers what it was asked."""

    def __init__(self, deaf: bool):
        super().__init__()
        self.latent_in, self.deaf, self.asked = nn.Linear(1, 1), deaf, []

    def forward(self, noised, tau_idx, step_idx, actions, known, segment) -> DynamicsOutput:
        self.asked.append((tau_idx, step_idx, known, actions))
        return DynamicsOutput(actions[..., None] * (not self.deaf), None)


def latent_actions(dataset: EpisodeDataset) -> LatentDataset:
    """The latent of a frame is the action that led to it."""
    led_to = np.roll(dataset.act_out_FA, 1, axis=0)
    return LatentDataset(
        Pieces([np.where(np.asarray(dataset.first_F)[:, None], 0, led_to)[:, None].astype(np.float32)]), "actions"
    )


def shuffled(world: World, deaf: bool) -> tuple[dict, Actor]:
    model = Actor(deaf)
    looking = inspector(world.dataset, dynamics=model, latents=latent_actions(world.dataset))
    return looking.action_shuffle(MANY), model


def test_model_that_knows_actions_has_all_its_error_from_the_shuffle(world: World):
    found, _ = shuffled(world, deaf=False)
    assert 0 < found["n_changed"] < found["n"]
    for size in ("one_step", "finest"):
        assert found[size]["error"] == 0 and found[size]["shuffled_error"] > 0
        assert found[size]["ratio"] == found[size]["ratio_changed"] == math.inf


def test_deaf_model_has_ratio_one(world: World):
    """Negative control of the test above."""
    found, _ = shuffled(world, deaf=True)
    for size in ("one_step", "finest"):
        assert found[size]["ratio"] == found[size]["ratio_changed"] == 1 and found[size]["error"] > 0


def test_next_frame_is_predicted_from_noise_in_one_pass_after_a_context_at_its_level(world: World):
    _, model = shuffled(world, deaf=True)
    seen = set()
    for tau_idx, step_idx, known, _ in model.asked:
        assert (tau_idx[:, :-1] == SHORTCUT.context_idx).all() and (tau_idx[:, -1] == 0).all()
        assert (step_idx[:, :-1] == SHORTCUT.finest).all() and known[:, -1].all()
        seen |= set(step_idx[:, -1].tolist())
    assert seen == {0, SHORTCUT.finest}


def test_only_the_last_action_is_exchanged(world: World):
    """Four equal halves: each of the two step sizes with the true actions, then with the others."""
    _, model = shuffled(world, deaf=True)
    actions = torch.cat([asked[3] for asked in model.asked])
    true, other, true_again, other_again = actions.chunk(4)
    assert torch.equal(true, true_again) and torch.equal(other, other_again)
    assert torch.equal(true[:, :-1], other[:, :-1]) and true[:, :-1].any()
    assert torch.equal(other[:, -1], true[:, -1].roll(1, dims=0))


# Heads


class Echo(nn.Module):
    """A head whose prediction is the feature."""

    def predict(self, features_BTM: Tensor) -> Tensor:
        return features_BTM[..., 0]


def calibrated(world: World, late: int) -> dict:
    """Rewards of heads that know the reward and the end of the frame `late` frames before."""
    looking, data = inspector(world.dataset), world.dataset
    looking.heads = SimpleNamespace(reward=Echo(), continues=None)
    looking.lens.features = lambda use, context_NC: torch.from_numpy(
        data.reward_F[context_NC[:, -1 - late]].reshape(-1, 1, 1)
    )
    return looking.rewards(MANY)["calibration"]


def test_heads_that_know_the_reward_lie_on_the_diagonal(world: World):
    found = calibrated(world, late=0)
    assert found["true"].tolist() == found["predicted"].tolist() == [0, 1]
    assert found["spread"].tolist() == [0, 0]
    walks = [walk for i, walk in enumerate(world.walks) if i % 3 == 0]
    assert found["n"].tolist()[1] == sum(walk.success for walk in walks)
    assert found["n"].sum() == sum(walk.length - 1 for walk in walks)


def test_heads_that_are_a_frame_late_do_not(world: World):
    """Negative control of the test above."""
    found = calibrated(world, late=1)
    assert found["true"].tolist() == [0, 1] and found["predicted"][1] == 0


def test_features_are_of_the_last_frame_which_sees_the_context(world: World):
    """They change with the latents of any frame of the context; those of an earlier frame know no later one."""
    numbers = world.latents.take(np.arange(world.dataset.frame_count))

    def features(changed: int | None = None) -> Tensor:
        latents = numbers.copy()
        if changed is not None:
            latents[changed] += 1
        looking = inspector(
            world.dataset,
            dynamics=tiny_dynamics(),
            tokenizer=tiny_tokenizer(),
            latents=LatentDataset(Pieces([latents]), ""),
        )
        return looking.lens.features("rewards", start + np.arange(CONTEXT)[None])

    start = int(world.dataset.starts_E[0])
    assert features().shape == (1, 1, 16) and same(features(), features(start + CONTEXT))
    for frame in range(CONTEXT):
        assert not same(features(), features(start + frame))


def test_probability_to_go_on_is_split_by_terminal_frames(world: World):
    looking = inspector(world.dataset)
    looking.lens.features = lambda use, context_NC: torch.from_numpy(
        np.where(world.dataset.terminal_F[context_NC[:, -1]], 0.25, 0.75).reshape(-1, 1, 1)
    )
    looking.heads = SimpleNamespace(reward=Echo(), continues=Echo())
    found = looking.rewards(MANY)["continues"]
    assert found["terminal"] == 0.25 and found["other"] == 0.75
    assert found["n_terminal"] == sum(walk.terminal for i, walk in enumerate(world.walks) if i % 3 == 0)


def test_returns_of_known_rewards(world: World, imagines):
    """Imagined: reward 1 and continue 1/2 at every step. Recorded: from the walks as they were written."""
    imagines(repeat)
    found = inspector(world.dataset, discount=0.9).returns(MANY)
    assert found["imagined"]["bc"]["mean"] == pytest.approx(sum((0.9 * 0.5) ** k for k in range(STEPS)), rel=1e-5)
    assert found["imagined"]["bc"]["stderr"] == 0
    recorded = []
    for walk in (walk for i, walk in enumerate(world.walks) if i % 3 == 0):
        for t in range(walk.length - 1):
            ahead = walk.reward_T[t + 1 : t + 1 + STEPS]
            recorded.append(sum(0.9**k * r for k, r in enumerate(ahead)))
    assert found["recorded"]["mean"] == pytest.approx(np.mean(recorded), rel=1e-5)
    assert found["n"] == len(recorded)


def test_value_head_adds_its_value_at_the_end(world: World, imagines):
    imagines(repeat)
    value = nn.Module()
    value.predict = lambda features: torch.full(features.shape[:2], 2.0)
    found = inspector(world.dataset, discount=0.9, value=value).returns(MANY)["imagined"]["bc"]
    assert found["value"] == 2
    assert found["bootstrapped"] == pytest.approx(found["mean"] + (0.9 * 0.5) ** STEPS * 2, rel=1e-5)


# All of it, with models


@pytest.fixture
def tiny(world: World) -> Callable[..., Inspector]:
    def build(**changes) -> Inspector:
        dynamics = tiny_dynamics()
        heads = tiny_heads(dynamics)
        policies = {"bc": heads.policy, "pmpo": tiny_heads(dynamics, seed=1).policy}
        models = {"tokenizer": tiny_tokenizer(), "dynamics": dynamics, "heads": heads, "policies": policies}
        return inspector(world.dataset, **{**models, "latents": world.latents, **changes})

    return build


def test_measurements_are_a_function_of_the_seed(tiny):
    looking, again = tiny(), tiny()
    state = torch.random.get_rng_state()
    one = looking.measure(10, 3)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(3)
    assert_equal(one, again.measure(10, 3))
    assert_equal(one, looking.measure(10, 3))
    assert not same(one, tiny(seed=6).measure(10, 3))


def test_model_that_generates_other_frames_has_other_numbers(tiny):
    """The real rollouts are used, at every step, and policies imagine with equal noise."""
    one, other = tiny(), tiny(dynamics=tiny_dynamics(seed=1))
    mine, theirs = one.horizon(10, 3), other.horizon(10, 3)
    assert (mine["model_psnr"] != theirs["model_psnr"]).all()
    assert np.array_equal(mine["tokenizer_psnr"], theirs["tokenizer_psnr"])
    imagined = one.returns(10)["imagined"]
    assert imagined["bc"] != imagined["pmpo"]
    alone = tiny(policies={"pmpo": one.policies["pmpo"]}).returns(10)["imagined"]
    assert imagined["pmpo"] == alone["pmpo"]


def test_horizon_of_one_step_is_the_first_of_many(tiny):
    looking = tiny()
    many, one = looking.horizon(10, 4), looking.horizon(10, 1)
    assert many["n"][0] == one["n"][0]
    assert many["copy_psnr"][0] == pytest.approx(one["copy_psnr"][0])


def test_no_weight_is_changed_and_none_keeps_a_gradient(tiny):
    looking = tiny(imagination=replace(IMAGINATION, horizon=2))
    before = {name: value.clone() for name, value in looking.lens.dynamics.state_dict().items()}
    looking.measure(6)
    assert_equal(before, dict(looking.lens.dynamics.state_dict()))
    assert not any(parameter.requires_grad for parameter in looking.lens.dynamics.parameters())


def test_frames_of_validation_only(world: World, tmp_path: Path):
    """With all training latents destroyed, nothing changes."""
    data = world.dataset
    broken = world.latents.take(np.arange(data.frame_count))
    training_F = np.repeat(~validation(data), data.lengths_E)
    broken[training_F] = np.nan
    models = {"tokenizer": tiny_tokenizer(), "dynamics": tiny_dynamics()}
    one = inspector(data, latents=world.latents, **models).measure(12, 2)
    assert_equal(one, inspector(data, latents=LatentDataset(Pieces([broken]), "broken"), **models).measure(12, 2))
