"""Action spaces: columns, checks and random actions."""

import json

import numpy as np
import pytest
import torch
from factories import MIXED_SPACE

from dreamer4.actions import ActionSpace
from dreamer4.errors import DataError
from dreamer4.rng import generator


def good_rows() -> np.ndarray:
    return MIXED_SPACE.random(50, generator("rows")).numpy()


def test_a_categorical_part_takes_one_column_and_the_others_one_per_key_or_axis():
    assert [part.columns for part in MIXED_SPACE.parts] == [1, 3, 2]
    assert MIXED_SPACE.columns == 6
    assert ActionSpace.discrete(7).columns == 1


def test_split_gives_every_part_its_own_columns_in_order():
    row = torch.arange(6.0)
    assert [part.tolist() for part in MIXED_SPACE.split(row)] == [[0], [1, 2, 3], [4, 5]]
    batch = torch.arange(6.0).expand(2, 3, 6)
    assert [part.shape for part in MIXED_SPACE.split(batch)] == [(2, 3, 1), (2, 3, 3), (2, 3, 2)]


def test_rows_of_another_width_are_refused_with_both_widths():
    with pytest.raises(DataError, match="actions have 5 columns, this action space has 6"):
        MIXED_SPACE.split(torch.zeros(2, 5))
    with pytest.raises(DataError, match="actions have 7 columns, this action space has 6"):
        MIXED_SPACE.check(np.zeros((2, 7)))


def test_a_space_survives_json():
    assert ActionSpace.from_json(json.loads(json.dumps(MIXED_SPACE.to_json()))) == MIXED_SPACE


def test_random_actions_are_in_the_space_and_reach_all_of_it():
    rows = MIXED_SPACE.random(500, generator("rows")).numpy()
    MIXED_SPACE.check(rows)
    assert rows.dtype == np.float32
    assert set(rows[:, 0]) == {0, 1, 2, 3, 4}
    assert all(set(rows[:, i]) == {0, 1} for i in (1, 2, 3))
    assert rows[:, 4:].min() < -0.9 and rows[:, 4:].max() > 0.9


def test_random_actions_are_a_function_of_the_generator():
    first, second = (MIXED_SPACE.random(20, generator("same")) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, 5, "part 'camera' holds 5; it takes whole numbers from 0 to 4"),
        (0, -1, "part 'camera' holds -1"),
        (0, 1.5, "part 'camera' holds 1.5"),
        (2, 2, "part 'keys' holds 2; it takes whole numbers from 0 to 1"),
        (3, 0.5, "part 'keys' holds 0.5"),
        (5, np.nan, "part 'stick' holds a value that is not finite"),
        (0, np.inf, "part 'camera' holds a value that is not finite"),
    ],
)
def test_one_bad_number_is_found_and_named(column: int, value: float, message: str):
    rows = good_rows()
    rows[17, column] = value
    with pytest.raises(DataError, match=message):
        MIXED_SPACE.check(rows)


def test_no_rows_are_good_rows():
    MIXED_SPACE.check(np.zeros((0, 6), np.float32))
