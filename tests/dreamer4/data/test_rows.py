import numpy as np
import pytest

from dreamer4.data.rows import Pieces, Rows

WHOLE = np.arange(12 * 6, dtype=np.int32).reshape(12, 3, 2)


@pytest.fixture
def rows() -> Rows:
    return Pieces([WHOLE[:5], WHOLE[5:6], WHOLE[6:12]])


@pytest.mark.parametrize("shape", [(0,), (), (1,), (40,), (4, 9), (2, 3, 4), (3, 0)])
def test_taking_from_pieces_equals_taking_from_the_whole(rows, shape):
    index = np.random.default_rng(0).integers(12, size=shape)
    taken = rows.take(index)
    assert taken.dtype == WHOLE.dtype and np.array_equal(taken, WHOLE[index])
    assert np.array_equal(rows[index], WHOLE[index])


def test_every_range_equals_that_of_the_whole(rows):
    for start in range(13):
        for stop in range(start, 13):
            assert np.array_equal(rows.between(start, stop), WHOLE[start:stop])


@pytest.mark.parametrize("index", [slice(None), slice(2, 8), slice(8, 2), slice(-3, None), slice(1, 11, 3), 4])
def test_indexing_means_what_it_means_for_arrays(rows, index):
    assert np.array_equal(rows[index], WHOLE[index])
    assert np.array_equal(np.asarray(rows), WHOLE) and len(rows) == 12


def test_a_range_in_one_piece_is_a_view_and_one_across_pieces_is_not(rows):
    assert np.shares_memory(rows.between(6, 12), WHOLE)
    assert not np.shares_memory(rows.between(4, 7), WHOLE)


def test_positions_outside_are_refused(rows):
    """Not wrapped around: position -1 would silently be the last frame of another episode."""
    for index in ([-1], [12], [3, 99]):
        with pytest.raises(IndexError, match="of 12"):
            rows.take(np.array(index))
    for start, stop in ((-1, 3), (3, 13), (4, 3)):
        with pytest.raises(IndexError, match="of 12"):
            rows.between(start, stop)
