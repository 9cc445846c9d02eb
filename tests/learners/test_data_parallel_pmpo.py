"""Stage 4 on several learners: two real processes with half of the rollouts each do what one does with all of them."""

import halves
import pytest
from halves import Alone
from ranks import RankError, Ranks
from states import assert_equal
from torch import Tensor

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def pair():
    ranks = Ranks(2)
    yield ranks
    ranks.close()


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference, as a share of the largest number."""
    assert one.keys() == other.keys()
    largest = max(float(value.abs().max()) for value in other.values())
    return max(float((one[name] - other[name]).abs().max()) for name in other) / largest


def test_two_ranks_with_half_of_the_rollouts_have_the_loss_and_the_gradients_of_one(pair):
    """Invariant 52."""
    one, (first, second) = halves.updates(None), pair.call(halves.updates)
    assert_equal(first, second)
    assert furthest(first["gradients"], one["gradients"]) < 1e-6
    assert first["metrics"] == pytest.approx(one["metrics"], rel=1e-5)


def test_ranks_that_count_for_themselves_have_other_gradients(pair):
    """Invariant 52, negative control: neither their sum nor their mean is that of one process."""
    one, (first, _) = halves.updates(None), pair.call(halves.updates, 1, Alone)
    mean = {name: gradient / 2 for name, gradient in first["gradients"].items()}
    for head in ("policy", "value"):
        expected = {name: value for name, value in one["gradients"].items() if name.startswith(head)}
        for wrong in (first["gradients"], mean):
            assert furthest({name: wrong[name] for name in expected}, expected) > 0.05


def test_two_ranks_learn_the_weights_of_one(pair):
    """Several updates: what one leaves behind is what the next begins with, the same on all ranks to the bit."""
    one, (first, second) = halves.updates(None, 4), pair.call(halves.updates, 4)
    assert_equal(first, second)
    assert furthest(first["weights"], one["weights"]) < 1e-4
    assert furthest(first["weights"], halves.updates(None)["weights"]) > 1e-3


def test_a_number_that_is_not_finite_stops_all_ranks(pair):
    """One that went on would wait for the others for ever."""
    with pytest.raises(RankError) as raised:
        pair.call(halves.poisoned_update)
    assert str(raised.value).count("NonFiniteError: policy: 'value' is nan at step 0") == 2
