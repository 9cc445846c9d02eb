"""AdamW with warm-up, decay of matrices only, and clipping of the gradient's norm."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dreamer4.errors import ConfigError, NonFiniteError


@dataclass(frozen=True)
class OptimConfig:
    """The paper gives no optimiser; these are what re-implementations converge with [G]."""

    lr: float = 3e-4
    warmup_steps: int = 100
    schedule: Literal["constant", "cosine"] = "constant"
    final_share: float = 0.05  # of `lr`, where a cosine schedule ends
    weight_decay: float = 0.01
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.schedule not in ("constant", "cosine"):
            raise ConfigError(f"optim.schedule must be 'constant' or 'cosine', got '{self.schedule}'")
        if self.lr <= 0 or self.clip <= 0:
            raise ConfigError(f"optim.lr ({self.lr}) and optim.clip ({self.clip}) must be positive")

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of the update number `step` of `steps`."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.schedule == "constant":
            return self.lr * warm
        progress = min(1.0, step / max(1, steps))
        return self.lr * warm * (self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * progress)))


class Optimizer:
    """Updates the parameters of some modules. Parameters without a gradient are left as they are.

    Args:
        fused: in one kernel, as on a GPU always. On a CPU it is faster and has other last bits than many kernels.
    """

    def __init__(self, config: OptimConfig, modules: Iterable[nn.Module], steps: int, fused: bool = False):
        self.config, self.steps = config, steps
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        fused = fused or (bool(parameters) and parameters[0].is_cuda)
        self.parameters = parameters
        self.adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused or None)

    def zero(self) -> None:
        """Forgets the gradients at hand."""
        self.adamw.zero_grad(set_to_none=True)

    def clip(self) -> Tensor:
        """Clips the gradients at hand; returns their norm before that."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        return getattr(norm, "full_tensor", lambda: norm)()  # of sharded gradients, the norm of all shards

    def gradients(self, loss: Tensor) -> Tensor:
        """Backward pass; returns the gradient's norm before clipping."""
        self.zero()
        loss.backward()
        return self.clip()

    def apply(self, index: int) -> float:
        """Update number `index` with the gradients at hand; returns the learning rate."""
        lr = self.config.lr_at(index, self.steps)
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        return lr

    def state(self) -> dict:
        return self.adamw.state_dict()["state"]

    def restore(self, state: dict, own: Callable[[Tensor, Tensor], Tensor] = lambda full, like: full) -> None:
        """Goes on from a state.

        Args:
            own: what this process keeps of a whole tensor; its second argument is the parameter that it belongs to.
        """
        parameters = [p for group in self.adamw.param_groups for p in group["params"]]
        shares = {i: {name: own(full, parameters[i]) for name, full in one.items()} for i, one in state.items()}
        self.adamw.load_state_dict({**self.adamw.state_dict(), "state": shares})


def check_finite(stage: str, index: int, values: dict[str, float], rate: str | None = None) -> None:
    """Raises `NonFiniteError`, naming stage, step and term, before a bad update reaches the weights.

    Args:
        rate: the setting of the learning rate, None = that of the stage's only optimiser.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{stage}: '{name}' is {value} at step {index}; the weights were not updated and the last checkpoint "
                f"is good: start another run with a lower learning rate ({rate or f'{stage}_training.optim.lr'})"
            )
