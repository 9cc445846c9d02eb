import numpy as np
import pytest

from actors.collector import Collector
from dreamer4.envs.minigrid import TILE, classify, make_minigrid
from dreamer4.envs.planners import Mixture
from dreamer4.envs.stages import LEFT, PICKUP, RIGHT, STAGES, TOGGLE, KeyDoorPlanner

HURRY, SLOW = "MiniGrid-DoorKey-5x5-Hurry-v0", "MiniGrid-DoorKey-5x5-v0"
NOBODY_IS_GOOD = Mixture(careful_share=0.0, careless_epsilon=0.1)


def play(env, seed, good_at=STAGES, dawdling=2):
    """Actions, stages in which they were chosen, and whether the goal was reached."""
    env.reset(seed=seed)
    planner, actions, stages = KeyDoorPlanner(env, good_at, dawdling, np.random.default_rng(seed)), [], []
    while True:
        stages.append(planner.stage())
        actions.append(planner.act(None))
        _, _, terminated, truncated, _ = env.step(actions[-1])
        if terminated or truncated:
            return actions, stages, terminated


@pytest.mark.parametrize(("name", "longest"), [(HURRY, 14), ("MiniGrid-DoorKey-6x6-Hurry-v0", 19)])
def test_who_does_not_dawdle_is_always_in_time(name, longest):
    env = make_minigrid(name)
    ways = [play(env, seed) for seed in range(200)]
    assert all(terminated for _, _, terminated in ways)
    assert max(len(actions) for actions, _, _ in ways) == longest


@pytest.mark.parametrize("good_at", STAGES)
def test_two_stages_begin_with_turns_and_the_third_does_not(good_at):
    ways = set()
    for seed in range(20):
        (actions, stages, _), (straight, *_) = (play(make_minigrid(SLOW), seed, who) for who in ((good_at,), STAGES))
        assert len(actions) == len(straight) + 16
        for stage in STAGES:
            first = actions[stages.index(stage) :][:8]
            if stage != good_at:
                assert first in ([LEFT] * 8, [RIGHT] * 8)
                ways.add(first[0])
        assert actions.count(PICKUP) == actions.count(TOGGLE) == 1
    assert ways == {LEFT, RIGHT}


def test_no_recording_is_good_throughout_though_every_stage_is_done_well_in_some():
    """The best of 400 recordings takes longer than any layout's shortest way; with careful players (control) not."""
    recorded = Collector(HURRY, NOBODY_IS_GOOD, 0).collect(0, 400)
    won = [episode.length - 1 for episode in recorded if episode.success]
    assert min(won) > 14 and np.mean([episode.success for episode in recorded]) == pytest.approx(0.23, abs=0.07)
    assert {episode.source for episode in recorded} == {f"good at {stage}, epsilon 0.1" for stage in STAGES}
    careful = Collector(HURRY, Mixture(careful_share=1.0, careful_epsilon=0.1), 0).collect(0, 50)
    assert min(episode.length - 1 for episode in careful if episode.success) < 10, "negative control"


def test_who_does_not_know_the_goal_is_quick_at_key_and_door_and_lost_behind_it():
    env = make_minigrid(SLOW)
    for seed in range(20):
        way, stages, _ = play(env, seed)
        env.reset(seed=seed)
        planner = KeyDoorPlanner(env, STAGES[:2], 2, np.random.default_rng(0), knows_goal=False)
        door = next(x for x in env.unwrapped.grid.grid if x is not None and x.type == "door").init_pos[0]
        for action in way[: stages.index("goal")]:
            assert planner.act(None) == action
            env.step(action)
        for _ in range(40):  # turns on the spot before the third stage, as others do, and then through the door
            action = planner.act(None)
            assert (action is None) == (env.unwrapped.agent_pos[0] > door)
            if action is None:
                break
            env.step(action)
        assert action is None


def test_share_of_players_who_are_lost():
    recorded = Collector(HURRY, Mixture(0.0, careless_epsilon=0.4, lost_share=0.5), 0).collect(0, 400)
    lost = [episode for episode in recorded if episode.source == "good at key, door, epsilon 0.4"]
    assert len(lost) / len(recorded) == pytest.approx(0.5, abs=0.08)
    assert {episode.source for episode in recorded} > {f"good at {stage}, epsilon 0.4" for stage in STAGES}


def test_who_is_stopped_by_the_clock_is_not_at_a_terminal_frame():
    recorded = Collector(HURRY, NOBODY_IS_GOOD, 0).collect(0, 40)
    assert any(episode.success for episode in recorded)
    for episode in recorded:
        assert episode.terminal == episode.success == (episode.reward_T[-1] > 0)
        assert episode.terminal or episode.length == 26


def test_dropped_key_is_fetched_again():
    env = make_minigrid(SLOW)
    env.reset(seed=0)
    planner, stages, dropped = KeyDoorPlanner(env, STAGES, 0, np.random.default_rng(0)), [], False
    for _ in range(60):
        stages.append(planner.stage())
        action = planner.act(None)
        if stages[-1] == "door" and not dropped and env.unwrapped.grid.get(*env.unwrapped.front_pos) is None:
            action, dropped = 4, True
        if env.step(action)[2]:
            break
    assert dropped and stages.index("door") < len(stages) - 1 - stages[::-1].index("key")
    assert stages[-1] == "goal"


def test_carried_key_is_seen_in_the_corner_and_nowhere_else():
    env = make_minigrid(SLOW)
    frame, _ = env.reset(seed=0)
    planner, keys = KeyDoorPlanner(env, STAGES, 0, np.random.default_rng(0)), []
    while (stage := planner.stage()) != "goal":
        tiles = classify(frame)
        keys.append([(r, c) for r, row in enumerate(tiles) for c, (name, _) in enumerate(row) if name == "yellow key"])
        assert (tiles[0][0][0] == "wall") is (stage == "key")
        assert (keys[-1] == [(0, 0)]) is (stage == "door") and len(keys[-1]) == 1
        frame = env.step(planner.act(None))[0]
    assert [(0, 0)] in keys and keys[0] != [(0, 0)]
    bare = frame.copy()
    bare[:TILE, :TILE] = bare[:TILE, TILE : 2 * TILE]
    base = env.unwrapped
    assert np.array_equal(bare, base.get_frame(highlight=False, tile_size=TILE)), "the rest is minigrid's own picture"
