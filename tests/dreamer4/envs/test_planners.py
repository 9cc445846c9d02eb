import numpy as np
import pytest
from minigrid.core.world_object import Ball, Box, Lava

from dreamer4.envs.minigrid import make_minigrid
from dreamer4.envs.planners import BotPlanner, Demonstrator, GoalPlanner, Mixture, planner_for
from dreamer4.envs.stages import KeyDoorPlanner
from dreamer4.errors import ConfigError
from dreamer4.rng import numpy_generator

LEFT, FORWARD, TOGGLE = 0, 2, 5
EMPTY, OBSTACLES = "MiniGrid-Empty-5x5-v0", "MiniGrid-Dynamic-Obstacles-5x5-v0"


def grid(*things):
    """The empty 5 x 5 room with the agent in its upper left corner looking right, and things at (x, y)."""
    env = make_minigrid(EMPTY)
    env.reset(seed=0)
    for x, y, thing in things:
        env.unwrapped.grid.set(x, y, thing)
    return env


def walk(env, careful, most=20):
    """Cells that the planner comes by, and the return."""
    planner, cells, total = GoalPlanner(env, careful), [], 0.0
    for _ in range(most):
        _, reward, terminated, _, _ = env.step(planner.act(None))
        total += reward
        cells.append(tuple(int(v) for v in env.unwrapped.agent_pos))
        if terminated:
            break
    return cells, total


@pytest.mark.parametrize("careful", [True, False])
def test_way_to_the_goal_is_the_shortest(careful):
    cells, total = walk(grid(), careful)
    assert len(cells) == 5 and cells[-1] == (3, 3)  # four cells and one turn
    assert total == pytest.approx(1 - 0.9 * 5 / 100)


@pytest.mark.parametrize("thing", [Ball(), Lava()])
def test_careful_planner_goes_around_and_careless_one_does_not(thing):
    things = [(2, 1, thing), (2, 2, thing)]
    cells, total = walk(grid(*things), careful=True)
    assert total > 0 and not {(2, 1), (2, 2)} & set(cells) and (1, 3) in cells
    assert GoalPlanner(grid(*things), careful=False).act(None) == FORWARD


def test_planner_turns_in_place_where_there_is_no_way():
    env = grid((2, 1, Ball()), (1, 2, Ball()))
    assert GoalPlanner(env, careful=True).act(None) == LEFT


def test_careful_planner_never_walks_into_a_ball():
    env = make_minigrid(OBSTACLES)
    for seed in range(30):
        env.reset(seed=seed)
        planner, over, reward = GoalPlanner(env, careful=True), False, 0.0
        while not over:
            _, reward, terminated, truncated, _ = env.step(planner.act(None))
            over = terminated or truncated
        assert reward >= 0


@pytest.mark.parametrize("level", ["GoToLocal", "PickupLoc", "UnlockPickup", "KeyCorridorS3R1"])
def test_bot_solves_levels(level):
    for seed in range(3):
        env = make_minigrid(f"BabyAI-{level}-v0")
        env.reset(seed=seed)
        planner, over, reward = BotPlanner(env), False, 0.0
        while not over:
            _, reward, terminated, truncated, _ = env.step(planner.act(None))
            over = terminated or truncated
        assert reward > 0


def test_bot_that_is_lost_says_so_for_the_rest_of_the_episode():
    env = make_minigrid("BabyAI-GoToRedBall-v0")
    env.reset(seed=0)
    base = env.unwrapped
    base.grid.set(*base.front_pos, Box("red"))
    planner = BotPlanner(env)
    assert planner.act(None) is not None
    env.step(TOGGLE)  # opens the box, which the bot can't bear
    assert planner.act(TOGGLE) is None and planner.act(LEFT) is None


def test_bot_that_goes_in_circles_is_lost():
    env = make_minigrid("BabyAI-GoToRedBall-v0")
    env.reset(seed=0)
    planner = BotPlanner(env)

    def circle(last_action):
        for _ in range(100_000):
            planner.bot.stack.append("one")
            planner.bot.stack.pop()
        return LEFT

    planner.bot.replan = circle
    assert planner.act(None) is None


def test_bot_may_plan_long_episodes():
    """Its patience is per action."""
    env = make_minigrid("BabyAI-GoToRedBall-v0")
    env.reset(seed=0)
    planner = BotPlanner(env)
    planner.bot.replan = lambda last_action: planner.bot.stack.append("one") or LEFT
    assert all(planner.act(None) == LEFT for _ in range(1500))


def test_planner_is_told_what_was_played_not_what_it_planned():
    told = []

    class Spy:
        def act(self, last_action):
            told.append(last_action)
            return FORWARD

    player = Demonstrator(EMPTY, grid(), Mixture(1.0, 0.5), numpy_generator("told"))
    player.planner = Spy()
    played = [player.act() for _ in range(50)]
    assert told == [None, *played[:-1]] and set(played) > {FORWARD}


def test_lost_player_acts_at_random():
    env = make_minigrid("BabyAI-GoToRedBall-v0")
    env.reset(seed=0)
    player = Demonstrator("BabyAI-GoToRedBall-v0", env, Mixture(1, 0, 0), numpy_generator("lost"))
    player.planner.lost = True
    assert {player.act() for _ in range(200)} == set(range(7))


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_share_of_slips_is_epsilon(epsilon):
    """In the empty room at rest the plan is always FORWARD; a third of the slips is FORWARD too."""
    player = Demonstrator(EMPTY, grid(), Mixture(1.0, epsilon, 0.0), numpy_generator("slips"))
    actions = np.array([player.act() for _ in range(2000)])
    share = np.mean(actions != FORWARD) * 7 / 6
    assert share == pytest.approx(epsilon, abs=0.04)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_share_of_careful_episodes(share):
    env, mixture = grid(), Mixture(share, 0.3, 0.1)
    players = [Demonstrator(EMPTY, env, mixture, numpy_generator("share", i)) for i in range(400)]
    assert np.mean([player.careful for player in players]) == pytest.approx(share, abs=0.08)
    assert {p.source for p in players if p.careful} <= {"careful, epsilon 0.3"}
    assert {p.source for p in players if not p.careful} <= {"careless, epsilon 0.1"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (OBSTACLES, GoalPlanner),
        ("MiniGrid-LavaGapS5-v0", GoalPlanner),
        ("MiniGrid-DistShift1-v0", GoalPlanner),
        ("MiniGrid-SimpleCrossingS9N1-v0", GoalPlanner),
        ("BabyAI-GoToLocal-v0", BotPlanner),
        ("MiniGrid-DoorKey-6x6-v0", KeyDoorPlanner),
    ],
)
def test_player_is_chosen_by_environment_and_wins(name, kind):
    env = make_minigrid(name)
    env.reset(seed=0)
    planner, over, reward = planner_for(name)(env, True, Mixture(), numpy_generator("player")), False, 0.0
    assert isinstance(planner, kind)
    while not over:
        _, reward, terminated, truncated, _ = env.step(planner.act(None))
        over = terminated or truncated
    assert reward > 0


def test_environment_that_nobody_can_play_is_named():
    with pytest.raises(ConfigError, match=r"MiniGrid-Unlock-v0.*BabyAI"):
        planner_for("MiniGrid-Unlock-v0")
