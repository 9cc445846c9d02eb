import pytest
import torch
from states import assert_equal, copied
from torch import Tensor, nn

from dreamer4.errors import CheckpointError, NonFiniteError
from dreamer4.normalise import RmsNormaliser
from dreamer4.rng import generator
from learners.learner import Learner, load_weights
from learners.optim import OptimConfig
from learners.parts import WHOLE, Part


class Regression(Learner):
    """A linear model with two terms; from step `bad_step` on its batches give the loss `bad`."""

    stage = "regression"

    def __init__(self, bad_step: int = 1000, bad: str = "loss", share: float = 1.0):
        module = nn.Linear(3, 1)
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
        super().__init__(module, RmsNormaliser(["fit", "size"]), OptimConfig(lr=0.05, warmup_steps=2), 20)
        self.bad_step, self.bad, self.share = bad_step, bad, share

    def weight(self, name: str) -> float:
        return self.share if name == "size" else 1.0

    def losses(self, index: int, part: Part = WHOLE) -> dict[str, Tensor]:
        assert part.whole
        x = torch.randn((8, 3), generator=generator(self.stage, index))
        fit = (self.module(x)[:, 0] - x.sum(1) - 1).square().mean()
        if index >= self.bad_step and self.bad == "loss":
            fit = fit * torch.tensor(float("nan"))
        if index >= self.bad_step and self.bad == "gradient":  # the root's slope at 0 is infinite
            fit = fit + (0.0 * self.module.weight.sum()).abs().sqrt()
        return {"fit": fit, "size": self.module.weight.square().mean()}

    def estimate_flops(self, index: int) -> int:
        return 2 * 2 * 8 * 3  # forward, and the weights' gradients


def everything(learner: Learner) -> object:
    return copied({"weights": learner.weights(), "state": learner.state()})


@pytest.mark.parametrize(("bad", "term"), [("loss", "fit"), ("gradient", "gradient_norm")])
def test_a_non_finite_update_is_named_and_changes_nothing(bad, term):
    learner = Regression(bad_step=3, bad=bad)
    for index in range(3):
        learner.step(index)
    before = everything(learner)
    with pytest.raises(NonFiniteError, match=f"^regression: '{term}' is nan at step 3;"):
        learner.step(3)
    assert_equal(before, everything(learner))


def test_after_a_non_finite_update_training_goes_on_as_if_it_had_not_been():
    """The gradients of the failed update are not left behind either."""
    learner, untouched = Regression(bad_step=3, bad="gradient"), Regression()
    for index in range(3):
        learner.step(index), untouched.step(index)
    with pytest.raises(NonFiniteError):
        learner.step(3)
    learner.bad_step = 1000
    assert learner.step(3) == untouched.step(3)
    assert_equal(everything(untouched), everything(learner))


def test_a_good_update_changes_weights_moments_and_normaliser():
    """Negative control of the test above."""
    learner = Regression()
    learner.step(0)
    before = everything(learner)
    learner.step(1)
    after = everything(learner)
    for part in (("weights", "weight"), ("state", "normaliser", "rms"), ("state", "optimizer", 0, "exp_avg")):
        a, b = before, after
        for key in part:
            a, b = a[key], b[key]
        assert not torch.equal(a, b), part


def test_metrics_are_plain_losses_with_gradient_norm_and_rate():
    learner = Regression()
    expected = {name: float(loss.detach()) for name, loss in learner.losses(0).items()}
    metrics = learner.step(0)
    assert metrics.keys() == {"fit", "size", "gradient_norm", "lr"}
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["lr"] == pytest.approx(0.025)
    assert all(type(value) is float for value in metrics.values())


def test_terms_are_weighted_after_normalisation():
    """A term of weight 0 has no gradient, whatever its size."""
    with_size, without = Regression(share=1.0), Regression(share=0.0)
    alone = Regression()
    alone.losses = lambda index, part: {"fit": Regression.losses(alone, index)["fit"]}
    for learner in (with_size, without, alone):
        learner.step(0)
    assert torch.equal(without.module.weight, alone.module.weight)
    assert not torch.equal(with_size.module.weight, alone.module.weight)


def test_the_scale_of_a_term_does_not_matter():
    """Invariant 36: a term times 1000 gives the same update."""
    plain, large = Regression(), Regression()
    large.losses = lambda index, part: {k: 1024 * v for k, v in Regression.losses(large, index).items()}
    for index in range(4):
        plain.step(index), large.step(index)
    assert torch.allclose(plain.module.weight, large.module.weight, rtol=1e-6)


def test_training_reduces_the_loss():
    learner = Regression()
    learner.optimizer.config = OptimConfig(lr=0.1, warmup_steps=0)
    rows = [learner.step(index) for index in range(60)]
    assert rows[-1]["fit"] < 0.5 * rows[0]["fit"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("bias"), "'bias', the checkpoint lacks it"),
        (lambda w: w.update(extra=torch.zeros(1)), "'extra', this model has no such weight"),
        (lambda w: w.update(weight=torch.zeros(1, 4)), r"'weight' has shape \(1, 4\), not \(1, 3\)"),
    ],
)
def test_weights_of_another_model_are_refused_by_the_first_difference(change, message):
    weights = dict(nn.Linear(3, 1).state_dict())
    change(weights)
    module = nn.Linear(3, 1)
    before = copied(module.state_dict())
    with pytest.raises(CheckpointError, match=f"the tokenizer checkpoint is of another model: {message}.*config"):
        load_weights(module, weights, "tokenizer")
    assert_equal(before, dict(module.state_dict()))


def test_weights_of_the_same_model_are_loaded():
    source, module = nn.Linear(3, 1), nn.Linear(3, 1)
    load_weights(module, source.state_dict(), "tokenizer")
    assert_equal(dict(source.state_dict()), dict(module.state_dict()))
