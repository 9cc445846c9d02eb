"""What all learners of a stage share: update number `index` is a function of the weights and the index."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dreamer4.errors import CheckpointError, NonFiniteError
from dreamer4.normalise import RmsNormaliser
from learners.optim import OptimConfig, Optimizer, check_finite
from learners.parallel import Parallel, Unit
from learners.parts import WHOLE, Part


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
        self.parallel = Parallel()

    @abstractmethod
    def losses(self, index: int, part: Part = WHOLE) -> dict[str, Tensor]:
        """The loss terms of batch number `index`, each a scalar.

        Of a part of the batch: what it adds to them. The parts' losses add up to those of the whole batch.
        """

    @abstractmethod
    def estimate_flops(self, index: int) -> int:
        """Floating-point operations of update number `index`, all parts together, as `dreamer4.flops` counts them."""

    def weight(self, name: str) -> float:
        """Factor of a loss term after normalisation."""
        return 1.0

    def units(self) -> list[Unit]:
        """The models of this learner, frozen ones as well, as they are entered by `losses`."""
        return [Unit(self.module)]

    def parallelise(self, parallel: Parallel) -> None:
        """Learns as one of several processes, or in another precision. To be called first, before any other method."""
        self.parallel = parallel
        parallel.apply(self.units())
        fused = parallel.config.compile and not parallel.sharded  # who compiles has given up the last bits already
        self.optimizer = Optimizer(self.optimizer.config, [self.module], self.steps, fused)

    def step(self, index: int) -> dict[str, float]:
        """One update; returns its metrics, those of the whole batch.

        Raises:
            NonFiniteError: a loss or the gradient's norm is not finite; neither weights nor normaliser have changed.
                All processes raise it together.
        """
        before = {name: buffer.clone() for name, buffer in self.normaliser.state_dict().items()}
        self.optimizer.zero()
        try:
            values = self.gradients(index)
            self.parallel.sum_gradients(self.optimizer.parameters)
            norm = float(self.optimizer.clip())
            check_finite(self.stage, index, {"gradient_norm": norm})
        except NonFiniteError:
            self.normaliser.load_state_dict(before)
            raise
        lr = self.optimizer.apply(index)
        return {**values, "gradient_norm": norm, "lr": lr}

    def gradients(self, index: int) -> dict[str, float]:
        """Backward passes of this process's parts of a batch; returns the losses of the whole batch.

        In one pass, the normaliser takes in the losses before it scales them. Accumulated passes have to be scaled
        before all losses are known: by the estimate before this update, which for the first one is made by a pass
        without gradients. So accumulation changes the scale, by about 1 % of how much the losses vary, but not what
        the parts are or in how many processes they are computed.
        """
        parts = self.parallel.parts()
        accumulates = len(parts) > 1
        if accumulates and not self.normaliser.largest.any():
            with torch.no_grad():
                self.normaliser.update(self.total(index, [self.contributions(index, part) for part in parts]))
        added = []
        for part in parts:
            losses = self.contributions(index, part)
            added.append({name: loss.detach() for name, loss in losses.items()})
            if not accumulates:
                values = self.total(index, added)
                self.normaliser.update(values)
            scaled = self.normaliser.scale(losses)
            self.parallel.backward(torch.stack([self.weight(k) * v for k, v in scaled.items()]).sum())
        if accumulates:
            values = self.total(index, added)
            self.normaliser.update(values)
        return {name: float(value) for name, value in values.items()}

    def contributions(self, index: int, part: Part) -> dict[str, Tensor]:
        with self.parallel.autocast(self.normaliser.rms.device):
            return self.losses(index, part)

    def total(self, index: int, added: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The losses of the whole batch, checked."""
        sums = {name: torch.stack([losses[name] for losses in added]).sum() for name in added[0]}
        values = self.parallel.total(sums)
        check_finite(self.stage, index, {name: float(value) for name, value in values.items()})
        return values

    def weights(self) -> dict[str, Tensor]:
        """Of the whole model, as checkpoints keep them; if it is sharded, on rank 0 only, but all ranks have to ask."""
        return self.parallel.whole(self.module.state_dict())

    def state(self) -> dict[str, Any]:
        """What resuming needs besides the weights; see `weights` for sharded models."""
        optimizer = self.parallel.whole(self.optimizer.state())
        return {"optimizer": optimizer, "normaliser": dict(self.normaliser.state_dict())}

    def restore(self, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Continues from a checkpoint, whatever number of processes wrote it.

        Raises:
            CheckpointError: the weights are of another model.
        """
        here = self.module.state_dict()
        shares = {name: self.parallel.own(full, here.get(name, full)) for name, full in weights.items()}
        load_weights(self.module, shares, self.stage)
        self.optimizer.restore(state["optimizer"], self.parallel.own)
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
