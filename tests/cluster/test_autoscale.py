import pytest

from cluster.policy.autoscale import Autoscaler, Fraction


def decisions(scaler: Autoscaler, rounds: list[tuple[float, float, int]]) -> list[int]:
    """What is wanted after each interval of (learner starves, workers idle, pending)."""
    now, wanted = 0.0, []
    assert not scaler.due(now)
    for starves, idle, pending in rounds:
        now += scaler.interval
        assert scaler.due(now)
        wanted.append(scaler.decide(now, starves, idle, pending))
        assert not scaler.due(now)
    return wanted


def scaler(wanted: int = 2, least: int = 1, most: int = 8) -> Autoscaler:
    return Autoscaler(least, most, 10.0, wanted)


def test_a_starving_learner_gets_workers_up_to_the_most():
    assert decisions(scaler(), [(0.9, 0.0, 0)] * 6) == [2, 3, 5, 8, 8, 8]


def test_idle_workers_are_given_back_one_by_one_down_to_the_least():
    assert decisions(scaler(4), [(0.0, 0.6, 0)] * 5) == [3, 2, 1, 1, 1]


def test_it_grows_only_after_a_whole_interval_without_pending_workers():
    assert decisions(scaler(), [(0.9, 0.0, 2), (0.9, 0.0, 2), (0.9, 0.0, 0), (0.9, 0.0, 0)]) == [2, 2, 2, 3]


def test_pending_workers_do_not_keep_it_from_shrinking():
    assert decisions(scaler(4), [(0.0, 0.9, 3)] * 2) == [3, 2]


@pytest.mark.parametrize("fractions", [(0.1, 0.1), (0.9, 0.9), (0.19, 0.0), (0.0, 0.29)])
def test_it_leaves_alone_what_is_balanced_or_waits_on_both_sides(fractions):
    assert decisions(scaler(), [(*fractions, 0)] * 4) == [2] * 4


def test_a_fraction_is_weighted_and_starts_anew():
    fraction = Fraction()
    fraction.add(1.0, 1.0)
    fraction.add(3.0, 0.0)
    assert fraction.value == 0.25
    fraction.add(1.0, 1.0, weight=4)
    assert fraction.take() == 5 / 8
    assert fraction.value == 0.0
