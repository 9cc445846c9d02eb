"""The bookkeeping of stage 4 under random events: what may run, what comes next, what is done again."""

import random

import pytest

from cluster.policy.schedule import Plan, Schedule


def finish(plan: Plan, seed: int, losses: float = 0.0, rewinds: float = 0.0) -> list[tuple[int, int, list[int]]]:
    """Plays a run with workers and a learner that answer in any order; returns the applied updates.

    Each is (step, newest version when the first of its rollouts was asked for, its rollouts).
    """
    draw, schedule, applied = random.Random(seed), Schedule(plan), []
    running: list[tuple[int, int]] = []  # epoch, index
    fed: list[tuple[int, list[int]]] = []
    asked: dict[int, int] = {}
    saved = 0
    while not schedule.done:
        schedule.admit()
        mine = [index for epoch, index in running if epoch == schedule.epoch]
        assert len(mine) + len(schedule.waiting) + len(schedule.arrived) <= plan.capacity
        event = draw.random()
        if event < rewinds and schedule.updates > saved:
            schedule.rewind(saved)
            del applied[saved:]
            fed.clear()
            asked.clear()
        elif event < 0.4 and (index := schedule.take()) is not None:
            assert all(index < other for other in schedule.waiting), "the oldest first"
            assert plan.version(plan.step_of(index)) <= schedule.updates, "its weights exist"
            asked.setdefault(plan.step_of(index), schedule.updates)
            running.append((schedule.epoch, index))
        elif event < 0.7 and running:
            epoch, index = running.pop(draw.randrange(len(running)))
            if epoch == schedule.epoch:
                lost = draw.random() < losses
                schedule.give_back(index) if lost else schedule.arrive(index, index)
        elif event < 0.85 and schedule.outstanding < 2 and (update := schedule.feed()) is not None:
            fed.append(update)
        elif fed:
            step, rollouts = fed.pop(0)
            schedule.applied(step)
            applied.append((step, asked[step], rollouts))
            if plan.saves(step):
                saved = step + 1
    return applied


@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.parametrize("per_step", [1, 4])
@pytest.mark.parametrize("faults", [(0.0, 0.0), (0.3, 0.02)])
def test_every_update_gets_its_rollouts_once_in_order_whatever_is_lost(staleness, per_step, faults):
    plan = Plan(steps=30, rollouts_per_step=per_step, max_staleness=staleness, save_every=7)
    for seed in range(20):
        applied = finish(plan, seed, *faults)
        assert [step for step, _, _ in applied] == list(range(plan.steps))
        assert [index for _, _, rollouts in applied for index in rollouts] == list(range(plan.steps * per_step))
        assert all(step - newest <= staleness for step, newest, _ in applied)


def test_staleness_is_used_where_it_is_allowed():
    """Negative control: with staleness 0 nothing is asked for ahead, with 3 something is."""
    ahead = {s: [step - newest for step, newest, _ in finish(Plan(30, 2, s), 0)] for s in (0, 3)}
    assert max(ahead[0]) == 0 and max(ahead[3]) > 0


def test_a_rollout_that_was_given_back_goes_before_younger_ones():
    schedule = Schedule(Plan(10, 3, 1))
    schedule.admit()
    assert [schedule.take() for _ in range(4)] == [0, 1, 2, 3]
    schedule.give_back(1)
    assert schedule.take() == 1


def test_an_update_is_fed_only_when_all_of_its_rollouts_are_there():
    schedule = Schedule(Plan(10, 2, 1))
    schedule.admit()
    schedule.arrive(1, "b")
    schedule.arrive(2, "c")
    assert schedule.feed() is None
    schedule.arrive(0, "a")
    assert schedule.feed() == (0, ["a", "b"])
    assert schedule.feed() is None


def test_after_a_rewind_everything_since_is_asked_for_again():
    schedule = Schedule(Plan(10, 1, 1), updates=6)
    schedule.admit()
    schedule.take()
    schedule.rewind(4)
    schedule.admit()
    assert (schedule.updates, schedule.fed, schedule.epoch) == (4, 4, 1)
    assert [schedule.take(), schedule.take(), schedule.take()] == [4, 5, None]


def test_updates_out_of_order_are_refused():
    schedule = Schedule(Plan(10), updates=3)
    with pytest.raises(ValueError, match="update 5 was reported, 3 is next"):
        schedule.applied(5)


def test_the_last_update_is_saved_whatever_the_interval():
    plan = Plan(steps=10, save_every=4)
    assert [step for step in range(10) if plan.saves(step)] == [3, 7, 9]
