import math

import pytest
import torch

from dreamer4.errors import DataError
from dreamer4.metrics import mean_stderr, psnr, wilson


def test_psnr_is_per_image_in_decibels():
    images = torch.zeros(2, 4, 4, 3)
    other = images.clone()
    other[0] += 0.1
    found = psnr(images, other)
    assert found.shape == (2,)
    assert float(found[0]) == pytest.approx(20.0, abs=1e-4)
    assert found[1] == math.inf


def test_wilson_interval_has_the_known_values():
    assert wilson(15, 50) == pytest.approx((0.1910, 0.4375), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_interval_holds_the_share_and_shrinks():
    low, high = wilson(3, 10)
    narrow_low, narrow_high = wilson(300, 1000)
    assert low < narrow_low < 0.3 < narrow_high < high


@pytest.mark.parametrize("successes", [-1, 11])
def test_impossible_counts_are_refused(successes):
    with pytest.raises(DataError, match=str(successes)):
        wilson(successes, 10)


def test_mean_and_standard_error():
    assert mean_stderr([1.0, 2.0, 3.0, 4.0]) == pytest.approx((2.5, math.sqrt(5 / 3 / 4)))
    mean, stderr = mean_stderr([3.0])
    assert mean == 3.0
    assert math.isnan(stderr)
    with pytest.raises(DataError, match="at least one"):
        mean_stderr([])
