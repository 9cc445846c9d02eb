import math

import numpy as np
import pytest

from actors.measures import GROUPS, calibration, decibels, mean_or_nan, ratio_of_means, squared_error, to_bytes


def test_decibels_of_known_errors():
    assert decibels(0.01) == pytest.approx(20) and decibels(1.0) == 0 and decibels(0.0) == math.inf
    assert decibels(np.array([0.1, 0.001])) == pytest.approx([10, 30])


def test_squared_error_is_per_frame():
    a, b = np.zeros((2, 3, 4, 4, 3)), np.full((4, 4, 3), 0.5)
    assert squared_error(a, b).shape == (2, 3) and (squared_error(a, b) == 0.25).all()


def test_bytes_are_rounded_and_clipped():
    assert to_bytes(np.array([-1, 0.5, 0.999, 2])).tolist() == [0, 128, 255, 255]


def test_few_true_values_are_groups_of_their_own():
    found = calibration(np.array([1.0, 0, 1, -1]), np.array([0.5, 0.1, 1.5, -2]))
    assert found["true"].tolist() == [-1, 0, 1]
    assert found["predicted"].tolist() == [-2, 0.1, 1]
    assert found["spread"].tolist() == [0, 0, 0.5] and found["n"].tolist() == [1, 1, 2]


def test_many_true_values_share_ranges_and_none_is_lost():
    true = np.concatenate([[-1.0] * 5, np.linspace(-0.9, 1, 40)])
    found = calibration(true, true + 0.1)
    assert len(found["n"]) == GROUPS and found["n"].sum() == len(true) and (found["n"] > 0).all()
    assert found["predicted"] == pytest.approx(found["true"] + 0.1)
    assert np.ptp(found["n"]) <= 5 and (np.diff(found["true"]) > 0).all()


def test_ratio_says_when_there_is_nothing_to_compare():
    assert ratio_of_means(np.array([3.0, 1]), np.array([1.0, 1])) == 2
    assert ratio_of_means(np.array([1.0]), np.array([0.0])) == math.inf
    assert math.isnan(ratio_of_means(np.array([]), np.array([]))) and math.isnan(mean_or_nan(np.array([])))
    assert math.isnan(ratio_of_means(np.zeros(2), np.zeros(2)))
