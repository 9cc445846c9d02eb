import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from echo import ACTIONS, FRAME, EchoEnv, echoed
from factories import tiny_dynamics, tiny_heads, tiny_tokenizer

from actors import evaluator
from actors.evaluator import AgentPolicy, DemonstratorPolicy, EvaluationResult, Evaluator, RandomPolicy
from dreamer4.envs.planners import Mixture
from dreamer4.envs.registry import make
from dreamer4.errors import ConfigError, DataError
from dreamer4.metrics import mean_stderr, wilson
from dreamer4.rng import generator
from dreamer4.shortcut import ShortcutConfig
from dreamer4.stream import AgentStream

OBSTACLES = "MiniGrid-Dynamic-Obstacles-5x5-v0"
FIRST = 1000


def script(episode, step):
    """What `Scripted` plays."""
    return (episode * 7 + step * step + 2) % ACTIONS


class Scripted:
    """Actions that depend on episode and step alone; keeps every moment that it saw."""

    def start(self, rows):
        self.rows, self.moments = rows, []

    def act(self, moment):
        self.moments.append(replace(moment, act_in_BA=moment.act_in_BA.copy()))
        pairs = zip(moment.episode_B, moment.step_B, strict=True)
        return np.array([[script(int(episode), int(step))] for episode, step in pairs], np.float32)


@pytest.fixture
def echo(monkeypatch):
    """Evaluators play `EchoEnv`."""
    monkeypatch.setattr(evaluator, "make", lambda name: EchoEnv())


def agent_policy(seed=0, sample=True):
    tokenizer, dynamics = tiny_tokenizer(), tiny_dynamics()
    return AgentPolicy(tokenizer, dynamics, tiny_heads(dynamics).policy, ShortcutConfig(8), seed, sample=sample)


def test_policy_is_told_the_action_that_led_to_the_frame(echo):
    policy = Scripted()
    Evaluator("echo", 3, FIRST, 100).play(policy, 0, 10)
    shown_more_than_zero = 0
    for moment in policy.moments:
        shown = echoed(moment.frames_BHWC)
        assert ((shown == -1) == moment.first_B).all() and (moment.first_B == (moment.step_B == 0)).all()
        assert (moment.act_in_BA[:, 0] == np.maximum(shown, 0)).all()
        assert moment.act_in_BA.dtype == np.float32 and moment.frames_BHWC.dtype == np.uint8
        for row in np.flatnonzero(~moment.first_B):
            assert shown[row] == script(int(moment.episode_B[row]), int(moment.step_B[row]) - 1)
            shown_more_than_zero += shown[row] > 0
    assert shown_more_than_zero > 3, "negative control: zeros alone would prove nothing"


def test_policy_is_told_which_episode_it_plays(echo):
    policy = Scripted()
    Evaluator("echo", 4, FIRST, 100).play(policy, 5, 9)
    for moment in policy.moments:
        assert (moment.frames_BHWC[:, 0, 2, 0] == (FIRST + moment.episode_B) % 256).all()


def test_results_are_what_the_environment_says(echo):
    result = Evaluator("echo", 3, FIRST, 100).play(Scripted(), 2, 12)
    assert result.seeds == list(range(FIRST + 2, FIRST + 14))
    for number, seed in enumerate(result.seeds):
        env, total, over, steps = EchoEnv(), 0.0, False, 0
        env.reset(seed=seed)
        while not over:
            _, reward, terminated, truncated, _ = env.step(script(seed - FIRST, steps))
            over, total, steps = terminated or truncated, total + reward, steps + 1
        assert (result.returns[number], result.lengths[number]) == (total, steps + 1)
        assert result.successes[number] == (terminated and reward > 0)
    assert True in result.successes and False in result.successes


@pytest.mark.parametrize("parallel", [1, 2, 5, 11, 12, 100])
def test_number_of_environments_does_not_matter(echo, parallel):
    assert Evaluator("echo", parallel, FIRST, 100).play(Scripted(), 0, 12) == Evaluator("echo", 3, FIRST, 100).play(
        Scripted(), 0, 12
    )


def test_parts_add_up_to_the_whole(echo):
    player = Evaluator("echo", 4, FIRST, 100)
    assert player.play(Scripted(), 0, 5) + player.play(Scripted(), 5, 7) == player.play(Scripted(), 0, 12)


def test_every_row_plays_its_share_and_then_idles(echo):
    """No bias towards short episodes: shares are fixed in advance, and no environment is stepped after its share."""
    policy = Scripted()
    Evaluator("echo", 4, FIRST, 100).play(policy, 0, 12)
    assert policy.rows == 4
    for row in range(4):
        episodes = [int(moment.episode_B[row]) for moment in policy.moments if moment.playing_B[row]]
        assert list(dict.fromkeys(episodes)) == [row, row + 4, row + 8]
        playing = [bool(moment.playing_B[row]) for moment in policy.moments]
        assert playing == sorted(playing, reverse=True)
    last = policy.moments[-1]
    assert not last.playing_B.all() and not last.first_B[~last.playing_B].any()


def test_terminal_frames_ask_for_no_action(echo):
    policy = Scripted()
    result = Evaluator("echo", 1, FIRST, 100).play(policy, 0, 6)
    assert len(policy.moments) == sum(length - 1 for length in result.lengths)


def test_long_episodes_are_cut_and_no_success(echo):
    result = Evaluator("echo", 2, FIRST, 3).play(Scripted(), 0, 10)
    assert max(result.lengths) == 3
    whole = Evaluator("echo", 2, FIRST, 100).play(Scripted(), 0, 10)
    cut = [number for number in range(10) if whole.lengths[number] > 3]
    assert cut and not any(result.successes[number] for number in cut)


@pytest.mark.parametrize(("parallel", "max_frames"), [(0, 10), (4, 1)])
def test_impossible_sizes_are_refused(parallel, max_frames):
    with pytest.raises(ConfigError, match=f"parallel {parallel} .* max_frames {max_frames}"):
        Evaluator(OBSTACLES, parallel, FIRST, max_frames)


def test_seeds_reproduce_a_real_evaluation():
    def play(first_seed, seed):
        return Evaluator(OBSTACLES, 5, first_seed, 50).play(RandomPolicy(seed), 0, 10)

    assert play(1_000_000, 0) == play(1_000_000, 0)
    assert play(1_000_000, 0).lengths != play(1_000_000, 1).lengths
    assert play(1_000_000, 0).lengths != play(2_000_000, 0).lengths


def test_random_policy_is_uniform_and_hopeless(echo):
    policy, drawn = RandomPolicy(0), []

    class Spy(Scripted):
        def act(self, moment):
            actions = policy.act(moment)
            drawn.extend(actions[moment.playing_B, 0].tolist())
            return actions

    Evaluator("echo", 10, FIRST, 100).play(Spy(), 0, 100)
    counts = np.bincount(np.array(drawn, int), minlength=ACTIONS)
    assert len(drawn) > 250 and counts.min() > len(drawn) / ACTIONS * 0.75


def test_random_policy_nearly_always_fails_among_obstacles():
    """-0.991 in many episodes."""
    result = Evaluator(OBSTACLES, 20, 1_000_000, 200).play(RandomPolicy(0), 0, 40)
    assert np.mean(result.returns) < -0.8 and sum(result.successes) <= 4


def test_careful_player_nearly_always_wins():
    """0.87 in many episodes."""
    policy = DemonstratorPolicy(OBSTACLES, Mixture(1.0, 0.0, 0.0), 0)
    result = Evaluator(OBSTACLES, 10, 1_000_000, 200).play(policy, 0, 30)
    assert np.mean(result.returns) == pytest.approx(0.87, abs=0.05) and sum(result.successes) == 30


@pytest.mark.parametrize("name", [OBSTACLES, "BabyAI-GoToLocal-v0"])
def test_demonstrator_does_not_depend_on_its_neighbours(name):
    wide, narrow = (
        Evaluator(name, parallel, 1_000_000, 100).play(DemonstratorPolicy(name, Mixture(), 3), 0, 6)
        for parallel in (4, 1)
    )
    assert wide == narrow


def test_demonstrator_is_not_asked_where_the_row_is_done(echo, monkeypatch):
    class Player:
        def __init__(self, name, env, mixture, random):
            self.env = env

        def act(self):
            assert not self.env.over
            return 1

    monkeypatch.setattr(evaluator, "Demonstrator", Player)
    result = Evaluator("echo", 4, FIRST, 100).play(DemonstratorPolicy("echo", Mixture(), 0), 0, 12)
    assert len(set(result.lengths)) > 1


@pytest.mark.parametrize("sample", [True, False])
def test_agent_does_not_depend_on_its_neighbours(echo, sample):
    """Rows forget at first frames, and noise is addressed by episode and step."""
    wide, narrow = (Evaluator("echo", parallel, FIRST, 100).play(agent_policy(0, sample), 0, 7) for parallel in (4, 1))
    assert wide == narrow
    assert Evaluator("echo", 4, FIRST, 100).play(agent_policy(0, sample), 0, 7) == wide


def test_agents_of_other_seeds_act_differently(echo):
    def play(seed):
        return Evaluator("echo", 4, FIRST, 100).play(agent_policy(seed), 0, 12).returns

    assert play(0) == play(0) and play(0) != play(1)


def test_agent_acts_as_its_stream_does(echo):
    """The episode's frames and actions through `AgentStream` by hand, with the noise of (seed, episode, step)."""
    policy = agent_policy(5)
    result = Evaluator("echo", 3, FIRST, 100).play(policy, 0, 5)
    for episode in range(5):
        env, stream = EchoEnv(), AgentStream(*policy.models, batch=1)
        frame, _ = env.reset(seed=FIRST + episode)
        act_in, total, step, over = np.zeros((1, 1), np.float32), 0.0, 0, False
        while not over:
            noise = [generator(5, "evaluation", episode, step)]
            act_in = stream.act(frame[None], act_in, np.array([step == 0]), noise)
            frame, reward, terminated, truncated, _ = env.step(int(act_in[0, 0]))
            over, total, step = terminated or truncated, total + reward, step + 1
        assert total == result.returns[episode]


def test_agent_reads_the_frames_of_the_environment(echo):
    """Negative control: the tiny agent acts on what it sees, so other pixels change its actions."""
    features = []
    for shade in (0, 200):
        stream = AgentStream(*agent_policy().models, batch=1)
        frame = np.full((1, *FRAME), shade, np.uint8)
        noise = [generator("pixels")]
        features.append(stream.features(frame, np.zeros((1, 1), np.float32), np.array([True]), noise))
    assert not torch.allclose(*features)


def test_summary_has_what_reports_read():
    result = EvaluationResult([1.0, -1.0, 0.5, 0.5], [True, False, True, True], [3, 4, 5, 6], [7, 8, 9, 10])
    summary = result.summary()
    assert (summary["mean_return"], summary["stderr"]) == mean_stderr(result.returns)
    assert (summary["success_low"], summary["success_high"]) == wilson(3, 4)
    assert summary["success"] == 0.75 and summary["episodes"] == 4
    assert summary["returns"] == result.returns and summary["seeds"] == result.seeds


def test_summary_of_a_real_evaluation_goes_into_json():
    result = Evaluator(OBSTACLES, 4, 1_000_000, 50).play(RandomPolicy(0), 0, 4)
    summary = result.summary()
    assert json.loads(json.dumps(summary)) == summary


def test_nothing_played_has_no_summary():
    with pytest.raises(DataError, match="at least one episode"):
        Evaluator(OBSTACLES, 4, FIRST, 50).play(RandomPolicy(0), 0, 0).summary()


def test_evaluation_plays_the_environment_of_that_name():
    frames = []

    class Spy(Scripted):
        def act(self, moment):
            frames.append(moment.frames_BHWC[0])
            return super().act(moment)

    Evaluator(OBSTACLES, 1, FIRST, 5).play(Spy(), 0, 1)
    assert np.array_equal(frames[0], make(OBSTACLES).reset(seed=FIRST)[0])
