import pytest
import torch
import torch.nn.functional as F

from dreamer4.errors import ConfigError
from dreamer4.rng import generator
from dreamer4.twohot import TwoHot, symexp


def test_bins_are_symmetric_around_an_exact_zero():
    """Invariant 37."""
    centres = TwoHot().centres
    assert len(centres) == 255
    assert centres[127] == 0
    assert torch.equal(centres, -centres.flip(0))
    assert (centres.diff() > 0).all()
    expected = symexp(torch.linspace(-20, 20, 255, dtype=torch.float64))
    torch.testing.assert_close(centres.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bins", [2, 1, 254])
def test_bins_without_a_middle_are_refused(bins):
    with pytest.raises(ConfigError, match=str(bins)):
        TwoHot(bins)


def test_numbers_survive_encoding():
    """Invariant 37: over +-1e6 and at the smallest sizes; two neighbouring weights that sum to 1."""
    two_hot = TwoHot()
    magnitude = torch.logspace(-6, 6, 500)
    x = torch.cat([-magnitude, torch.zeros(1), magnitude])
    encoded = two_hot.encode(x)
    torch.testing.assert_close(encoded.sum(-1), torch.ones_like(x))
    assert ((encoded > 0).sum(-1) <= 2).all()
    torch.testing.assert_close(two_hot.decode(encoded.log()), x, rtol=1e-5, atol=1e-8)


def test_number_on_a_bin_is_one_hot_and_ends_are_clipped():
    """Invariant 37."""
    two_hot = TwoHot(41)
    assert torch.equal(two_hot.encode(two_hot.centres), torch.eye(41))
    ends = two_hot.encode(torch.tensor([-1e30, 1e30]))
    assert torch.equal(ends, torch.eye(41)[[0, -1]])


@pytest.mark.parametrize("bins", [3, 41, 255])
def test_uniform_logits_are_exactly_zero(bins):
    """Invariant 37. Negative control: the plain sum from one end to the other is not."""
    two_hot = TwoHot(bins)
    for level in (0.0, 3.7):
        logits = torch.full((5, bins), level)
        assert (two_hot.decode(logits) == 0).all()
    if bins == 255:
        assert (torch.softmax(logits, -1) * two_hot.centres).cumsum(-1)[0, -1] != 0


def test_loss_is_the_cross_entropy_with_the_encoding():
    two_hot = TwoHot(41)
    noise = generator("two-hot")
    logits = torch.randn(3, 7, 41, generator=noise, requires_grad=True)
    x = (torch.randn(3, 7, generator=noise) * 10).requires_grad_()
    expected = -(two_hot.encode(x.detach()) * F.log_softmax(logits, -1)).sum(-1)
    torch.testing.assert_close(two_hot.loss(logits, x), expected)
    two_hot.loss(logits, x).sum().backward()
    assert x.grad is None, "targets carry no gradient"
    torch.testing.assert_close(two_hot.loss(logits.bfloat16(), x), expected, rtol=0.05, atol=0.05)
    assert two_hot.loss(logits.bfloat16(), x).dtype == torch.float32


def test_mean_of_a_stochastic_number_is_predicted_without_bias():
    """The best prediction of a rare large reward is its mean; interpolation in symlog space (control) misses it."""
    two_hot, rewards = TwoHot(), torch.tensor([0.0] * 9 + [100.0])
    best_logits = two_hot.encode(rewards).mean(0).log()
    assert float(two_hot.decode(best_logits)) == pytest.approx(10.0, rel=1e-4)
    in_symlog_space = symexp(torch.log1p(rewards).mean())
    assert float(in_symlog_space) < 1


def test_centres_follow_the_limit_and_are_not_in_the_checkpoint():
    assert float(TwoHot(5, limit=2.0).centres[-1]) == pytest.approx(float(symexp(torch.tensor(2.0))))
    assert not TwoHot().state_dict()
