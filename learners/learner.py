"""What all learners of a stage share: update number `index` is a function of the weights and the index."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from dreamer4.errors import CheckpointError
from dreamer4.normalise import RmsNormaliser
from learners.optim import OptimConfig, Optimizer, check_finite


class Learner(ABC):
    """One model in training.

    `step(i)` draws its batch and its noise from (seed, stage, i), so a learner restored at step i continues bit for
    bit as if it had never stopped.
    """

    stage: str

    def __init__(self, module: nn.Module, normaliser: RmsNormaliser, optim: OptimConfig, steps: int):
        self.module = module
        self.normaliser = normaliser.to(next(module.parameters()).device)
        self.optimizer = Optimizer(optim, [module], steps)
        self.steps = steps

    @abstractmethod
    def losses(self, index: int) -> dict[str, Tensor]:
        """The loss terms of batch number `index`, each a scalar."""

    def weight(self, name: str) -> float:
        """Factor of a loss term after normalisation."""
        return 1.0

    def step(self, index: int) -> dict[str, float]:
        """One update; returns its metrics.

        Raises:
            NonFiniteError: a loss or the gradient's norm is not finite; neither weights nor normaliser have changed.
        """
        losses = self.losses(index)
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        check_finite(self.stage, index, values)
        before = {name: buffer.clone() for name, buffer in self.normaliser.state_dict().items()}
        self.normaliser.update({name: loss.detach() for name, loss in losses.items()})
        scaled = self.normaliser.scale(losses)
        norm = float(self.optimizer.gradients(torch.stack([self.weight(k) * v for k, v in scaled.items()]).sum()))
        try:
            check_finite(self.stage, index, {"gradient_norm": norm})
        except Exception:
            self.normaliser.load_state_dict(before)
            raise
        lr = self.optimizer.apply(index)
        return {**values, "gradient_norm": norm, "lr": lr}

    def weights(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def state(self) -> dict[str, Any]:
        """What resuming needs besides the weights."""
        return {"optimizer": self.optimizer.state(), "normaliser": dict(self.normaliser.state_dict())}

    def restore(self, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Continues from a checkpoint.

        Raises:
            CheckpointError: the weights are of another model.
        """
        load_weights(self.module, weights, self.stage)
        self.optimizer.restore(state["optimizer"])
        self.normaliser.load_state_dict(state["normaliser"])


def load_weights(module: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    """Strict loading, with one sentence about the first difference instead of torch's list of all."""
    own, saved = ({key: value.shape for key, value in one.items()} for one in (module.state_dict(), weights))
    check_shapes(own, saved, name)
    module.load_state_dict(weights)


def check_shapes(own: dict[str, torch.Size], saved: dict[str, torch.Size], name: str) -> None:
    """Compares the shapes of a model's weights with those of a checkpoint.

    Raises:
        CheckpointError: naming the first difference.
    """
    for key in [*own, *saved]:
        if key not in saved or key not in own:
            where = "the checkpoint lacks it" if key not in saved else "this model has no such weight"
            raise CheckpointError(
                f"the {name} checkpoint is of another model: '{key}', {where}; check the run's config"
            )
        if own[key] != saved[key]:
            raise CheckpointError(
                f"the {name} checkpoint is of another model: '{key}' has shape {tuple(saved[key])}, not "
                f"{tuple(own[key])}; check the run's config"
            )
