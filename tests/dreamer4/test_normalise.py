import pytest
import torch

from dreamer4.normalise import RmsNormaliser


def run(normaliser: RmsNormaliser, losses: list[float], name: str = "a") -> list[float]:
    scaled = []
    for loss in losses:
        normaliser.update({name: torch.tensor(loss)})
        scaled.append(float(normaliser.scale({name: torch.tensor(loss)})[name]))
    return scaled


def test_constant_loss_becomes_one():
    """Invariant 36."""
    assert run(RmsNormaliser(["a"]), [7.0] * 20) == pytest.approx([1.0] * 20)
    assert run(RmsNormaliser(["a"], decay=0.9, floor=0.0), [50.0] + [7.0] * 200)[-1] == pytest.approx(1.0, abs=1e-3)


def test_scale_of_a_loss_does_not_matter():
    """Invariant 36."""
    losses = [3.0, 1.0, 2.0, 0.5, 0.7]
    small = run(RmsNormaliser(["a"]), [1e-6 * loss for loss in losses])
    assert small == pytest.approx(run(RmsNormaliser(["a"]), losses))


def test_estimate_is_the_decayed_mean_square():
    normaliser = RmsNormaliser(["a"], decay=0.9)
    run(normaliser, [3.0, 4.0])
    assert float(normaliser.rms[0]) == pytest.approx((0.9 * 9 + 0.1 * 16) ** 0.5)


def test_gradient_is_that_of_the_loss_over_the_estimate():
    """Invariant 36: none flows through the estimate; with L / |L| there would be no gradient at all."""
    normaliser = RmsNormaliser(["a"])
    run(normaliser, [4.0, 4.0])
    x = torch.tensor(3.0, requires_grad=True)
    loss = x.square()
    normaliser.update({"a": loss})
    normaliser.scale({"a": loss})["a"].backward()
    assert x.grad is not None
    assert float(x.grad) == pytest.approx(6.0 / float(normaliser.rms[0]))
    (trivial,) = torch.autograd.grad(x.square() / x.square().abs(), x)
    assert trivial == 0


def test_value_still_tells_good_batches_from_bad():
    """Invariant 36: not the trivial L / |L|."""
    scaled = run(RmsNormaliser(["a"]), [1.0] * 10 + [0.5])
    assert scaled[-1] == pytest.approx(0.5, rel=0.01)


def test_vanishing_loss_is_not_amplified_without_bound():
    losses = [1.0] + [1e-6] * 2000
    assert run(RmsNormaliser(["a"], floor=0.1), losses)[-1] == pytest.approx(1e-5)
    assert run(RmsNormaliser(["a"], floor=0.0), losses)[-1] > 1e-2, "negative control: without the floor it is"


def test_losses_are_independent_and_may_be_absent():
    normaliser = RmsNormaliser(["a", "b"])
    normaliser.update({"b": torch.tensor(5.0)})
    scaled = normaliser.scale({"a": torch.tensor(3.0), "b": torch.tensor(5.0)})
    assert float(scaled["a"]) == 3.0
    assert float(scaled["b"]) == 1.0


def test_state_survives_a_checkpoint():
    """Invariant 36."""
    first, second = RmsNormaliser(["a"]), RmsNormaliser(["a"])
    run(first, [3.0, 2.0])
    second.load_state_dict(first.state_dict())
    assert run(first, [1.0, 4.0]) == run(second, [1.0, 4.0])
    assert run(RmsNormaliser(["a"]), [1.0, 4.0]) != run(second, [1.0, 4.0]), "negative control"


def test_ranks_agree_if_they_are_updated_with_the_mean_over_ranks():
    """Invariant 36."""
    ranks = [RmsNormaliser(["a"]) for _ in range(2)]
    for losses in ([1.0, 3.0], [2.0, 0.5]):
        for rank in ranks:
            rank.update({"a": torch.tensor(losses).mean()})
    assert torch.equal(ranks[0].rms, ranks[1].rms)
