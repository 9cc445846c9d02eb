import gymnasium as gym
import pytest

from dreamer4.actions import ActionSpace
from dreamer4.envs.registry import action_space, make, spec, success
from dreamer4.errors import ConfigError


def test_spec_of_the_grid_with_obstacles():
    found = spec("MiniGrid-Dynamic-Obstacles-5x5-v0")
    assert found.frame_shape == (40, 40, 3)
    assert found.actions == ActionSpace.discrete(3)
    assert found.tasks == ("MiniGrid-Dynamic-Obstacles-5x5-v0",)


@pytest.mark.parametrize(
    ("name", "shape"), [("BabyAI-GoToLocal-v0", (64, 64, 3)), ("BabyAI-UnlockPickup-v0", (48, 88, 3))]
)
def test_spec_of_levels_that_are_not_square(name, shape):
    assert spec(name).frame_shape == shape == make(name).reset(seed=0)[0].shape
    assert spec(name).actions == ActionSpace.discrete(7)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("MiniGrid-Dynamic-Obstacle-5x5-v0", "did you mean 'MiniGrid-Dynamic-Obstacles-5x5-v0'?"),
        ("BabyAI-GoToLocal", "did you mean 'BabyAI-GoToLocal-v0'?"),
        ("tetris", "any MiniGrid-* or BabyAI-* environment"),
        ("", "any MiniGrid-* or BabyAI-* environment"),
    ],
)
def test_unknown_name_is_answered_with_one_sentence_and_the_nearest(name, hint):
    for ask in (make, spec):
        with pytest.raises(ConfigError) as error:
            ask(name)
        assert f"'{name}'" in str(error.value) and hint in str(error.value)
        assert len(str(error.value)) < 200 and "\n" not in str(error.value)


def test_action_spaces_other_than_one_choice_are_refused():
    class Stick(gym.Env):
        action_space = gym.spaces.Box(-1, 1, (2,))

    with pytest.raises(ConfigError, match="Discrete"):
        action_space(Stick())


@pytest.mark.parametrize(
    ("reward", "terminated", "expected"),
    [(0.9, True, True), (0.0, True, False), (-1, True, False), (0.9, False, False)],
)
def test_success_is_an_end_with_a_reward(reward, terminated, expected):
    assert success(reward, terminated) is expected
