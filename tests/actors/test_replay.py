import numpy as np
import pytest
import torch

from actors.collector import Collector, recording_seed
from actors.diagnosis import agreement, arrival, correlation, dreamt_and_real, first_rewards, ranks, right
from actors.measures import tiles_in
from actors.replay import Outcome, Replay
from actors.starts import new_starts
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.writer import DatasetWriter
from dreamer4.envs.planners import Mixture
from dreamer4.envs.registry import make, spec
from dreamer4.envs.stages import STAGES, KeyDoorPlanner
from dreamer4.errors import DataError
from dreamer4.imagination import Dream

NAME = "MiniGrid-DoorKey-5x5-Hurry-v0"
RIGHT, FORWARD = 1, 2


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    folder, env = tmp_path_factory.mktemp("recorded"), spec(NAME)
    with DatasetWriter(folder, NAME, env.frame_shape, env.actions, env.tasks) as writer:
        for episode in Collector(NAME, Mixture(0.0), seed=3).collect(0, 12):
            writer.add(episode)
    return EpisodeDataset.open(folder)


def moments(dataset: EpisodeDataset, position: int) -> np.ndarray:
    return dataset.starts_E + position


def test_recorded_actions_lead_to_the_recorded_frames_rewards_and_ends(recorded):
    steps, episodes = 9, [recorded.episode(number) for number in range(12)]
    actions = np.stack([episode.act_out_TA[10 : 10 + steps] for episode in episodes])
    outcome = Replay(recorded, NAME, 3).outcome(moments(recorded, 10), actions)
    for number, episode in enumerate(episodes):
        n = min(steps, episode.length - 11)
        assert np.array_equal(outcome.frames_NHHWC[number, :n], episode.frames_THWC[11 : 11 + n])
        assert outcome.reward_NH[number, :n] == pytest.approx(episode.reward_T[11 : 11 + n])
        assert outcome.known_NH[number, :n].all()
        assert outcome.terminal_NH[number].any() == (episode.terminal and episode.length <= 11 + steps)
        assert (outcome.known_NH[number].sum() < steps) == outcome.terminal_NH[number, :-1].any()


def test_other_actions_lead_elsewhere(recorded):
    turned, straight = (
        Replay(recorded, NAME, 3).outcome(moments(recorded, 0), np.full((12, 2, 1), action))
        for action in (RIGHT, FORWARD)
    )
    assert not np.array_equal(turned.frames_NHHWC, straight.frames_NHHWC)


def test_time_limit_ends_nothing(recorded):
    outcome = Replay(recorded, NAME, 3).outcome(moments(recorded, 0), np.full((12, 60, 1), RIGHT))
    assert outcome.known_NH.all() and not outcome.terminal_NH.any()


def test_whoever_comes_too_late_gets_the_least_reward(recorded):
    env = make(NAME)
    limit = env.unwrapped.max_steps
    late, wait = [], limit + 3
    for number in range(12):
        env.reset(seed=recording_seed(3, number))
        planner = KeyDoorPlanner(env, STAGES, 0, np.random.default_rng(0))
        way, over = [], False
        while not over:
            way.append(planner.act(None))
            over = env.step(way[-1])[2]
        late.append([RIGHT] * 4 * (wait // 4 + 1) + way + [RIGHT] * (limit - len(way)))  # full turns change nothing
    outcome = Replay(recorded, NAME, 3).outcome(moments(recorded, 0), np.array(late)[..., None])
    assert outcome.terminal_NH.any(1).all()
    assert outcome.reward_NH.sum(1) == pytest.approx(np.full(12, 1 - 0.9))


def test_recordings_of_another_seed_are_refused(recorded):
    with pytest.raises(DataError, match="does not repeat episode"):
        Replay(recorded, NAME, 4).outcome(moments(recorded, 5), np.zeros((12, 1, 1)))


def test_what_a_frame_gets_right_is_told_apart(recorded):
    episode = recorded.episode(0)
    among, frame = tiles_in(episode.frames_THWC), episode.frames_THWC[0]
    assert right(frame, frame, among) == (True, True, True, True)
    turned = Replay(recorded, NAME, 3).outcome(moments(recorded, 0)[:1], np.full((1, 1, 1), RIGHT)).frames_NHHWC[0, 0]
    assert right(turned, frame, among) == (False, True, True, False)
    lost = frame.copy()
    lost[24:32, 24:32] = frame[8:16, 24:32]  # floor instead of the goal
    assert right(lost, frame, among) == (True, False, False, False)


def test_a_door_that_is_open_is_still_a_door_and_a_key_that_is_carried_is_still_a_key(recorded):
    """Items are as they are, kinds of items wherever and however."""
    episode = recorded.episode(0)
    among, first, last = tiles_in(episode.frames_THWC), episode.frames_THWC[0], episode.frames_THWC[-1]
    assert right(last, first, among) == (False, False, True, False)


def test_windows_that_end_early_count_as_they_ended_or_not_at_all(recorded):
    """Of two windows one ends after two frames; there its last imagined frame is wrong, and later ones don't matter."""
    frames = recorded.episode(0).frames_THWC[:5]
    among = tiles_in(recorded.episode(0).frames_THWC)
    real, last = np.stack([frames[1:], frames[1:]]), np.stack([frames[0]] * 2)
    known, imagined = np.ones((2, 4), bool), real.copy()
    known[1, 2:], imagined[1, 1] = False, recorded.episode(0).frames_THWC[-1]
    going_on = agreement(imagined, real, known, last, (1, 2, 4, 16), among)
    assert [(going_on[step]["n"], going_on[step]["frame"]) for step in "124"] == [(2, 1.0), (2, 0.5), (1, 1.0)]
    ended = agreement(imagined, real, known, last, (1, 2, 4, 16), among, to_the_end=True)
    assert [(ended[step]["n"], ended[step]["frame"]) for step in "124"] == [(2, 1.0), (2, 0.5), (2, 0.5)]
    assert set(ended) == {"1", "2", "4"}, "dreams are no longer than that"
    terminal = np.zeros_like(known)
    terminal[1, 1] = True
    before = agreement(imagined, real, known & ~terminal, last, (1, 2, 4), among, to_the_end=True)
    assert [(before[step]["n"], before[step]["frame"]) for step in "124"] == [(2, 1.0), (2, 1.0), (2, 1.0)]
    end = arrival(imagined, real, terminal, among)
    assert (end["n"], end["frame"]) == (1, 0.0)
    assert arrival(imagined, real, np.zeros_like(known), among)["n"] == 0


def test_ranks_of_equal_values_are_shared_and_correlation_is_of_ranks():
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0, 2.5, 1]
    assert correlation(ranks(np.array([1.0, 5.0, 90.0])), ranks(np.array([0.1, 0.2, 0.3]))) == pytest.approx(1)
    assert np.isnan(correlation(np.ones(3), np.arange(3.0)))


def test_returns_and_rewards_are_compared_and_first_ones_whatever_their_size():
    """Rewards of 0.1, 0.9, none and -0.5; dreams have 0.4 or -0.4 at the right steps, and go on after them."""
    real, dreamt = np.zeros((4, 4)), torch.zeros(4, 4)
    real[0, 2], real[1, 0] = 0.1, 0.9
    dreamt[0, 2] = dreamt[1, 0] = 0.4
    real[3, 1], dreamt[3, 1] = -0.5, -0.4
    terminal = real != 0
    known = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]], bool)
    none = torch.zeros(4, 4)
    dream = Dream(none, none, none, dreamt, torch.full((4, 4), 1.0), none)
    found = dreamt_and_real([dream], Outcome(np.zeros(0), real, known, terminal), discount=0.5, least=0.05)
    assert found["returns"]["correlation"] < 0.99
    assert found["first_reward"] == {"n": 3, "same": 1, "same_step": 1, "missed": 0, "false": 0}
    assert found["returns"]["real"]["mean"] == pytest.approx((0.25 * 0.1 + 0.9 - 0.25) / 4)
    assert found["returns"]["imagined"]["mean"] == pytest.approx((0.25 * 0.4 + 0.4 - 0.2) / 4)
    assert found["reward"] == pytest.approx(
        {
            "n_paid": 2,
            "real_when_paid": 0.5,
            "imagined_when_paid": 0.4,
            "n_taken": 1,
            "real_when_taken": -0.5,
            "imagined_when_taken": -0.4,
            "imagined_otherwise": 0,
        }
    )
    assert found["continues"] == {"n_terminal": 3, "terminal": 1.0, "other": 1.0}


def test_first_rewards_are_missed_false_or_of_another_sign_or_step():
    real, dreamt = np.zeros((7, 4)), np.full((7, 4), 0.01)
    real[0, 2], dreamt[0, 2] = 0.1, 0.9
    real[1, 2], dreamt[1, 1] = 0.5, 0.5  # a step too early
    real[2, 1] = 0.5  # missed
    dreamt[3, 0] = 0.5  # false
    real[4, 2], dreamt[4, 2] = 0.5, -0.5  # of the other sign
    real[5, 0], dreamt[5, 0], dreamt[5, 1] = -1, -1, 1  # what comes later doesn't count
    found = first_rewards(dreamt, real, least=0.05)
    assert found == pytest.approx({"n": 6, "same": 3 / 6, "same_step": 2 / 6, "missed": 1 / 6, "false": 1 / 6})
    assert np.isnan(first_rewards(dreamt[6:], real[6:], 0.05)["same"]), "nothing is given in either"


def test_starts_are_new_where_no_recording_has_them(recorded):
    seeds = [recording_seed(3, number) for number in range(12)]
    assert not new_starts(recorded, NAME, seeds).any()
    others = new_starts(recorded, NAME, range(20))
    assert others.any(), "twelve recordings can't start everywhere"
