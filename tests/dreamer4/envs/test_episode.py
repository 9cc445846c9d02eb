import numpy as np
import pytest
from echo import EchoEnv, echoed

from dreamer4.envs.episode import run_episode
from dreamer4.envs.minigrid import make_minigrid


def scripted(*actions):
    left = iter(actions)
    return lambda frame: next(left)


def test_action_out_is_the_one_that_the_next_frame_shows():
    """The timing contract of `dreamer4.types`: act_in[t + 1] == act_out[t]."""
    episode = run_episode(EchoEnv(), scripted(2, 0, 1, 1, 2), seed=4)
    assert episode.length == 6
    assert episode.act_out_TA[:, 0].tolist() == [2, 0, 1, 1, 2, 0]
    assert echoed(episode.frames_THWC).tolist() == [-1, 2, 0, 1, 1, 2]
    assert (echoed(episode.frames_THWC)[1:] == episode.act_out_TA[:-1, 0]).all()
    assert (echoed(episode.frames_THWC)[:-1] != episode.act_out_TA[:-1, 0]).any(), "negative control: a shifted row"


def test_rewards_are_on_arrival_and_the_last_action_is_not_known():
    episode = run_episode(EchoEnv(), scripted(2, 0, 2), seed=2, source="script")
    assert episode.reward_T.tolist() == [0, 1, -1, 1] and episode.episode_return == 1
    assert episode.act_known_T.tolist() == [True, True, True, False]
    assert episode.terminal and episode.success and episode.source == "script"
    assert episode.frames_THWC.dtype == np.uint8 and episode.act_out_TA.dtype == episode.reward_T.dtype == np.float32


def test_policy_is_asked_once_at_every_frame_but_the_last():
    asked = []

    def act(frame):
        asked.append(frame)
        return 1

    episode = run_episode(EchoEnv(), act, seed=3)
    assert np.array_equal(np.stack(asked), episode.frames_THWC[:-1])


@pytest.mark.parametrize(("seed", "terminal"), [(9, True), (14, False)])
def test_truncated_episodes_are_neither_terminal_nor_successes(seed, terminal):
    episode = run_episode(EchoEnv(), lambda frame: 2, seed=seed)
    assert episode.length == 6
    assert episode.terminal is terminal and episode.success is terminal and episode.truncated is not terminal


def test_long_episodes_are_cut():
    cut, whole = (run_episode(EchoEnv(), lambda frame: 2, 4, max_frames) for max_frames in (4, 6))
    assert cut.length == 4 and not cut.terminal and not cut.success and cut.episode_return == 3
    assert not cut.truncated, "the environment had not stopped it"
    assert not cut.act_known_T[-1] and cut.act_out_TA[-1] == 0
    assert whole.length == 6 and whole.terminal and whole.success


def test_environment_goes_on_with_its_own_numbers_without_a_seed():
    env = make_minigrid("MiniGrid-Dynamic-Obstacles-5x5-v0")
    run_episode(env, lambda frame: 0, seed=1, max_frames=2)
    frames = {run_episode(env, lambda frame: 0, max_frames=2).frames_THWC.tobytes() for _ in range(10)}
    assert len(frames) > 1
