import itertools

import pytest
import torch
from torch import distributions as reference

from dreamer4.actions import ActionSpace, Part
from dreamer4.distributions import ActionDistribution, Gaussian, logits_of
from dreamer4.errors import DataError
from dreamer4.rng import generator

BINARY, CATEGORICAL = Part("keys", "binary", 2), Part("camera", "categorical", 3)
MIXED = ActionSpace((BINARY, CATEGORICAL, Part("stick", "continuous", 2)))


def logits_for(space: ActionSpace, *shape: int, seed: int = 0) -> list[torch.Tensor]:
    noise = generator("logits", seed)
    return [torch.randn(*shape, logits_of(part), generator=noise) * 2 for part in space.parts]


def as_torch(part: Part, logits: torch.Tensor) -> reference.Distribution:
    if part.kind == "categorical":
        return reference.Categorical(logits=logits)
    if part.kind == "binary":
        return reference.Independent(reference.Bernoulli(logits=logits), 1)
    gaussian = Gaussian(logits)
    return reference.Independent(reference.Normal(gaussian.mean, gaussian.log_std.exp()), 1)


@pytest.mark.parametrize("part", MIXED.parts, ids=lambda part: part.kind)
def test_every_kind_agrees_with_torch_distributions(part):
    """Invariant 48: closed form, KL(self || other) and not the reverse."""
    space = ActionSpace((part,))
    logits, other_logits = logits_for(space, 4, 5)[0], logits_for(space, 4, 5, seed=1)[0]
    ours, other = ActionDistribution(space, [logits]), ActionDistribution(space, [other_logits])
    theirs, their_other = as_torch(part, logits), as_torch(part, other_logits)
    action = ours.sample(generator("action"))
    value = action[..., 0] if part.kind == "categorical" else action
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(value))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(ours.kl(other), reference.kl_divergence(theirs, their_other))
    assert not torch.allclose(ours.kl(other), other.kl(ours), rtol=1e-2), "the two directions differ"


def test_log_probability_is_the_sum_of_the_parts():
    """Invariant 43: the probabilities of all 2^2 * 3 combinations of keys and classes sum to 1."""
    space = ActionSpace((BINARY, CATEGORICAL))
    distribution = ActionDistribution(space, logits_for(space))
    actions = torch.tensor([[*keys, c] for *keys, c in itertools.product((0, 1), (0, 1), range(3))]).float()
    single = [distribution.log_prob(action) for action in actions]
    assert float(torch.stack(single).exp().sum()) == pytest.approx(1.0, abs=1e-6)
    keys, camera = distribution.parts
    expected = keys.log_prob(actions[5, :2]) + camera.log_prob(actions[5, 2:])
    torch.testing.assert_close(single[5], expected)


def test_kl_and_entropy_are_sums_over_the_parts():
    ours = ActionDistribution(MIXED, logits_for(MIXED, 6))
    other = ActionDistribution(MIXED, logits_for(MIXED, 6, seed=1))
    torch.testing.assert_close(ours.entropy(), sum(part.entropy() for part in ours.parts))
    terms = [part.kl(theirs) for part, theirs in zip(ours.parts, other.parts, strict=True)]
    torch.testing.assert_close(ours.kl(other), sum(terms))


def test_kl_and_its_gradient_vanish_at_the_prior():
    """Invariant 48."""
    logits = [x.requires_grad_() for x in logits_for(MIXED, 6)]
    prior = ActionDistribution(MIXED, [x.detach() for x in logits])
    kl = ActionDistribution(MIXED, logits).kl(prior)
    assert (kl == 0).all()
    kl.sum().backward()
    for x in logits:
        assert x.grad is not None
        assert x.grad.abs().max() < 1e-6


def test_samples_follow_the_probabilities():
    logits = [x.expand(20_000, -1) for x in logits_for(MIXED, 1)]
    distribution = ActionDistribution(MIXED, logits)
    keys, camera, stick = MIXED.split(distribution.sample(generator("many")))
    torch.testing.assert_close(keys.mean(0), logits[0][0].sigmoid(), atol=0.02, rtol=0)
    frequencies = torch.bincount(camera[:, 0].long(), minlength=3) / len(camera)
    torch.testing.assert_close(frequencies, logits[1][0].softmax(-1), atol=0.02, rtol=0)
    gaussian = Gaussian(logits[2][0])
    torch.testing.assert_close(stick.mean(0), gaussian.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(stick.std(0), gaussian.log_std.exp(), atol=0, rtol=0.03)


def test_sample_is_a_function_of_logits_and_generator():
    distribution = ActionDistribution(MIXED, logits_for(MIXED, 64))
    first, same, other = (distribution.sample(generator("noise", i)) for i in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_mode_is_the_most_probable_action():
    distribution = ActionDistribution(MIXED, logits_for(MIXED, 8))
    best = distribution.log_prob(distribution.mode())
    for seed in range(50):
        assert (distribution.log_prob(distribution.sample(generator("sample", seed))) <= best + 1e-6).all()


def test_offset_axis_is_taken_by_at():
    distribution = ActionDistribution(MIXED, logits_for(MIXED, 2, 5, 4))
    actions = distribution.sample(generator("offsets"))
    assert actions.shape == (2, 5, 4, MIXED.columns)
    joint = distribution.log_prob(actions)
    for offset in range(4):
        torch.testing.assert_close(distribution.at(offset).log_prob(actions[:, :, offset]), joint[:, :, offset])


def test_extreme_logits_stay_finite():
    space = ActionSpace((BINARY, CATEGORICAL))
    ours = ActionDistribution(space, [torch.tensor([80.0, -80.0]), torch.tensor([90.0, 0.0, -90.0])])
    other = ActionDistribution(space, [torch.tensor([-80.0, 80.0]), torch.tensor([-90.0, 0.0, 90.0])])
    for value in (ours.kl(other), ours.entropy(), ours.log_prob(torch.tensor([0.0, 1.0, 2.0]))):
        assert value.isfinite()


def test_actions_of_another_space_are_refused():
    with pytest.raises(DataError, match="3 columns"):
        ActionDistribution(MIXED, logits_for(MIXED, 1)).log_prob(torch.zeros(1, 3))
