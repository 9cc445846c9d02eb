import numpy as np
import pytest

from dreamer4.actions import ActionSpace, Part
from dreamer4.errors import DataError
from dreamer4.foveation import VPT, Foveation, camera_decode, camera_encode, mu_law_decode, mu_law_encode

BINS = np.arange(11)


def test_bins_survive_the_round_trip():
    """Invariant 43."""
    assert (mu_law_encode(mu_law_decode(BINS)) == BINS).all()
    assert (camera_encode(camera_decode(np.arange(121))) == np.arange(121)).all()


def test_centres_are_those_of_vpt():
    """Invariant 43: symmetric, bin 5 is no movement."""
    centres = mu_law_decode(BINS)
    assert centres[5:] == pytest.approx([0, 0.6154, 1.6095, 3.2154, 5.8095, 10], abs=1e-4)
    assert (centres == -centres[::-1]).all()
    assert mu_law_encode(np.zeros(1)) == 5


def test_bins_are_finer_near_zero():
    """Negative control: equal bins would not be."""
    assert (np.diff(mu_law_decode(BINS)[5:]) > 0.6).all()
    assert (np.diff(np.diff(mu_law_decode(BINS)[5:])) > 0).all()


def test_fast_movement_is_clipped_and_order_is_kept():
    degrees = np.linspace(-180, 180, 10_001)
    bins = mu_law_encode(degrees)
    assert (np.diff(bins) >= 0).all()
    assert bins[0] == 0
    assert bins[-1] == 10


def test_pitch_is_the_slow_digit_of_the_joint_class():
    assert camera_encode(np.zeros((2, 2))).tolist() == [60, 60]
    assert camera_encode(np.array([10.0, -10.0])) == 110
    assert camera_decode(np.array([110])).tolist() == [pytest.approx([10.0, -10.0])]


def test_other_foveations_keep_the_properties_and_are_part_of_the_action_space():
    wide = Foveation(limit=30.0, mu=5.0, bins=15)
    assert (mu_law_encode(mu_law_decode(np.arange(15), wide), wide) == np.arange(15)).all()
    assert mu_law_decode(np.array([14]), wide) == pytest.approx([30.0])
    space = ActionSpace((Part("keys", "binary", 2), Part("mouse", "categorical", wide.classes, wide)))
    assert ActionSpace.from_json(space.to_json()) == space
    assert "foveation" not in space.to_json()[0]
    other = ActionSpace((Part("keys", "binary", 2), Part("mouse", "categorical", 225, Foveation(bins=15))))
    assert other != space, "the same classes of another foveation are other movements"
    with pytest.raises(DataError, match="size 225"):
        Part("mouse", "categorical", VPT.classes, wide)
    with pytest.raises(DataError, match="bins odd"):
        Foveation(bins=10)
