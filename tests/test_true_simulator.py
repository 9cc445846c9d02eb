from typing import Any

import numpy as np
import pytest

from benchmarks.true_simulator import CARRIED, DOOR, Simulator, read_state
from dreamer4.envs.registry import make
from dreamer4.rng import numpy_generator


@pytest.mark.parametrize(("name", "size", "limit"), [("5x5", 5, 25), ("6x6", 6, 28)])
def test_simulator_is_minigrid(name, size, limit):
    """Random play, with the doing of things preferred, so that keys are dropped and doors closed again."""
    env: Any = make(f"MiniGrid-DoorKey-{name}-Hurry-v0").unwrapped
    simulator = Simulator(size, limit)
    assert env.max_steps == limit
    draw, seen = numpy_generator("random play", name), []
    for episode in range(40):
        env.reset(seed=episode)
        env.max_steps = 10**6
        for _ in range(150):
            before, action = read_state(env), int(draw.choice(7, p=(0.2, 0.1, 0.3, 0.15, 0.05, 0.15, 0.05)))
            _, _, terminated, _, _ = env.step(action)
            expected, goal = simulator.step(before[None], np.array([action]))
            assert goal[0] == terminated
            if terminated:
                break
            assert expected[0].tolist() == read_state(env).tolist()
            seen.append(expected[0])
    states = np.stack(seen)
    assert set(states[:, DOOR]) == {0, 1, 2} and set(states[:, CARRIED]) == {0, 1}, "all that can happen did"


def test_features_tell_all_states_apart():
    env, simulator = make("MiniGrid-DoorKey-5x5-v0").unwrapped, Simulator(5, 25)
    draw, states = numpy_generator("features"), set()
    for episode in range(20):
        env.reset(seed=episode)
        for _ in range(50):
            states.add(tuple(read_state(env).tolist()))
            if env.step(int(draw.integers(7)))[2]:
                break
    features = simulator.features(np.array(sorted(states))).numpy()
    assert len({row.tobytes() for row in features}) == len(states) > 50
