import contextlib
import io

import gymnasium as gym
import numpy as np
import pytest
from minigrid.core.grid import Grid
from minigrid.wrappers import RGBImgObsWrapper

from dreamer4.envs.minigrid import TILE, agent_cell, classify, count, make_minigrid
from dreamer4.rng import numpy_generator

OBSTACLES = "MiniGrid-Dynamic-Obstacles-5x5-v0"
NAMES = [
    OBSTACLES,
    "MiniGrid-DoorKey-6x6-v0",
    "MiniGrid-LavaCrossingS9N2-v0",
    "MiniGrid-FourRooms-v0",
    "MiniGrid-Playground-v0",
    "BabyAI-GoToLocal-v0",
    "BabyAI-UnlockPickup-v0",
]


def states(name, count, seed=0):
    """(environment, frame) at `count` states of random play and all ends; the environment moves on with the loop."""
    env, draw = make_minigrid(name), numpy_generator("states", name, seed)
    frame, _ = env.reset(seed=seed)
    for number in range(count):
        yield env.unwrapped, frame
        frame, _, terminated, truncated, _ = env.step(int(draw.integers(env.action_space.n)))
        if terminated or truncated:
            yield env.unwrapped, frame
            frame, _ = env.reset(seed=1000 + number)


def cells(base):
    """(row, column, object) of the environment's own grid."""
    return [(i // base.width, i % base.width, item) for i, item in enumerate(base.grid.grid)]


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_those_of_minigrids_own_wrapper(name):
    ours, theirs = make_minigrid(name), RGBImgObsWrapper(gym.make(name, disable_env_checker=True), tile_size=TILE)
    theirs.unwrapped.highlight = False
    draw = numpy_generator("play", name)
    frame, (observation, _) = ours.reset(seed=3)[0], theirs.reset(seed=3)
    for _ in range(30):
        assert frame.dtype == np.uint8 and ours.observation_space.contains(frame)
        if (carried := ours.unwrapped.carrying) is not None:
            assert np.array_equal(frame[:TILE, :TILE], Grid.render_tile(carried, tile_size=TILE).astype(np.uint8))
            frame[:TILE, :TILE] = observation["image"][:TILE, :TILE]
        assert np.array_equal(frame, observation["image"])
        action = int(draw.integers(ours.action_space.n))
        frame, *mine = ours.step(action)
        observation, *reference = theirs.step(action)
        assert mine == reference
        if mine[1] or mine[2]:
            frame, (observation, _) = ours.reset(seed=4)[0], theirs.reset(seed=4)


def test_frames_are_not_changed_by_later_steps():
    env = make_minigrid(OBSTACLES)
    frame, _ = env.reset(seed=0)
    before = frame.copy()
    assert not np.array_equal(env.step(1)[0], before)
    assert np.array_equal(frame, before)


def test_five_by_five_grid_is_forty_pixels_wide_and_takes_three_actions():
    env = make_minigrid(OBSTACLES)
    assert env.observation_space.shape == (40, 40, 3) and env.action_space.n == 3


def test_seeds_reproduce_frames_and_other_seeds_do_not():
    def play(seed):
        env = make_minigrid(OBSTACLES)
        return [env.reset(seed=seed)[0], *(env.step(action)[0] for action in (0, 0, 1, 0, 1, 1, 1, 0))]

    assert np.array_equal(play(5), play(5))
    assert not np.array_equal(play(5), play(6))


def test_seeds_beyond_32_bits_are_told_apart():
    env = make_minigrid(OBSTACLES)
    frames = {env.reset(seed=2**31 + 2**40 * i)[0].tobytes() for i in range(20)}
    assert len(frames) > 5


def test_levels_that_reject_layouts_do_so_in_silence(capsys):
    name, noise = "BabyAI-PutNextLocalS5N3-v0", io.StringIO()
    bare = gym.make(name, disable_env_checker=True).unwrapped
    with contextlib.redirect_stdout(noise):
        for seed in range(20):
            bare.reset(seed=seed)
    assert "rejected" in noise.getvalue(), "negative control: the bare level prints"
    env = make_minigrid(name)
    for seed in range(20):
        env.reset(seed=seed)
    assert capsys.readouterr().out == ""


def test_agent_balls_and_goal_are_found_in_random_states():
    for base, frame in states(OBSTACLES, 50):
        tiles = classify(frame)
        x, y = base.agent_pos
        assert agent_cell(frame) == (y, x)
        assert tiles[y][x] in [("agent", base.agent_dir), ("agent on goal", base.agent_dir)]
        found = {(r, c) for r, row in enumerate(tiles) for c, (name, _) in enumerate(row) if name == "blue ball"}
        assert found == {(r, c) for r, c, item in cells(base) if item is not None and item.type == "ball"}
        assert count(frame, "ball") == len(found) == 2
        assert tiles[3][3][0] in ("goal", "agent on goal")
        assert count(frame, "wall") == 16


@pytest.mark.parametrize("name", NAMES)
def test_every_tile_of_real_frames_is_named_as_the_grid_has_it(name):
    for base, frame in states(name, 15):
        tiles = classify(frame)
        for r, c, item in cells(base):
            if (r, c) == (0, 0) and base.carrying is not None:
                item = base.carrying
            expected = "empty" if item is None else item.type
            if item is not None and item.type not in ("wall", "goal", "lava"):
                locked, opened = getattr(item, "is_locked", False), getattr(item, "is_open", False)
                state = "locked " if locked else "open " if opened else ""
                expected = f"{item.color} {state}{item.type}"
            if (c, r) == tuple(base.agent_pos):
                expected = "agent" if item is None else f"agent on {expected}"
            assert tiles[r][c][0] == expected


def test_classification_bears_noise_and_takes_floats():
    for index, (base, frame) in enumerate(states(OBSTACLES, 20)):
        noisy = frame + numpy_generator("noise", index).normal(0, 25, frame.shape)
        assert classify(noisy) == classify(frame)
        assert agent_cell(noisy) == (base.agent_pos[1], base.agent_pos[0])


def test_no_agent_is_found_where_there_is_none():
    env = make_minigrid(OBSTACLES)
    frame, _ = env.reset(seed=0)
    frame[8:16, 8:16] = frame[8:16, 16:24] if count(frame[8:16, 16:24], "empty") else frame[16:24, 8:16]
    assert agent_cell(frame) is None


def test_a_choice_of_tiles_limits_the_answers():
    _, frame = next(states(OBSTACLES, 1))
    among = {"empty", "wall", "agent"}
    assert {name for row in classify(frame, among) for name, _ in row} <= among
    assert {name for row in classify(frame) for name, _ in row} - among == {"goal", "blue ball"}
    assert agent_cell(frame, among) == agent_cell(frame) and count(frame, "ball", among) == 0
