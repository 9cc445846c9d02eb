"""The proof that every learner of stages 1 to 3 owes: stopping and starting again changes no bit."""

from collections.abc import Callable
from pathlib import Path

from states import assert_equal, copied, same

from dreamer4.checkpoint import Checkpoints
from learners.learner import Learner

CONFIG = {"optim": {"lr": 1e-3}}


def everything(learner: Learner) -> object:
    return copied({"weights": learner.weights(), "state": learner.state()})


def assert_resume_is_exact(make: Callable[[int], Learner], folder: Path) -> None:
    """Six updates equal three, a checkpoint on disk, and three by a new learner from other first weights.

    Args:
        make: a learner from the first weights of a seed; all else is the same for every seed.
    """
    whole, first = make(0), make(0)
    rows = [whole.step(index) for index in range(6)]
    early = [first.step(index) for index in range(3)]
    Checkpoints(folder).save(3, first.weights(), first.state(), CONFIG)
    first.step(3)  # what goes on after a save does not reach the checkpoint
    saved = Checkpoints(folder).load(config=CONFIG)
    second = make(1)
    assert not same(copied(second.weights()), saved.weights), "the control: other first weights"
    second.restore(saved.weights, saved.state)
    assert_equal(rows, early + [second.step(index) for index in range(3, 6)])
    assert_equal(everything(whole), everything(second))


def assert_steps_differ(make: Callable[[int], Learner]) -> None:
    """Negative control: batches and noise of two steps are not the same, so a resume at another step would differ."""
    assert not same(make(0).step(0), make(0).step(1))
