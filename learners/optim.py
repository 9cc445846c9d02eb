"""AdamW, or Muon for the matrices of transformers, with warm-up, decay of matrices only, and clipping."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dreamer4.errors import ConfigError, NonFiniteError
from learners.muon import Muon
from learners.parallel import layers


@dataclass(frozen=True)
class OptimConfig:
    """The paper gives no optimiser; these are what re-implementations converge with [G]."""

    lr: float = 3e-4
    muon_lr: float | None = None  # of the matrices in transformer layers, which are Muon's then; None = AdamW for all
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
        if self.muon_lr is not None and self.muon_lr <= 0:
            raise ConfigError(f"optim.muon_lr must be positive, or null for AdamW alone, got {self.muon_lr}")

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
        modules = list(modules)
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        matrices = [] if config.muon_lr is None else matrices_of_layers(modules)
        taken = {id(p) for p in matrices}
        others = [p for p in parameters if id(p) not in taken]
        groups = [
            {"params": [p for p in others if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
        ]
        fused = fused or (bool(parameters) and parameters[0].is_cuda)
        self.parameters = parameters
        self.adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused or None)
        self.rules: list[tuple[torch.optim.Optimizer, float]] = [(self.adamw, config.lr)]
        if config.muon_lr is not None and matrices:
            self.rules.append((Muon(matrices, config.muon_lr, config.weight_decay), config.muon_lr))

    def zero(self) -> None:
        """Forgets the gradients at hand."""
        for rule, _ in self.rules:
            rule.zero_grad(set_to_none=True)

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
        """Update number `index` with the gradients at hand; returns the learning rate, of AdamW where there are two."""
        lr = self.config.lr_at(index, self.steps)
        for rule, rate in self.rules:
            for group in rule.param_groups:
                group["lr"] = rate * (lr / self.config.lr)
            rule.step()
        return lr

    def state(self) -> dict[int, Any]:
        """Moments by number of the parameter: AdamW's parameters, then Muon's."""
        state: dict[int, Any] = {}
        for (rule, _), first in zip(self.rules, self._firsts(), strict=True):
            state |= {first + i: one for i, one in rule.state_dict()["state"].items()}
        return state

    def restore(self, state: dict[int, Any], own: Callable[[Tensor, Tensor], Tensor] = lambda full, like: full) -> None:
        """Goes on from a state.

        Args:
            own: what this process keeps of a whole tensor; its second argument is the parameter that it belongs to.
        """
        for (rule, _), first in zip(self.rules, self._firsts(), strict=True):
            parameters = [p for group in rule.param_groups for p in group["params"]]
            mine = {i: state[first + i] for i in range(len(parameters)) if first + i in state}
            shares = {i: {name: own(full, parameters[i]) for name, full in one.items()} for i, one in mine.items()}
            rule.load_state_dict({**rule.state_dict(), "state": shares})

    def _firsts(self) -> list[int]:
        """The number of each rule's first parameter."""
        counts = [sum(len(group["params"]) for group in rule.param_groups) for rule, _ in self.rules]
        return [sum(counts[:i]) for i in range(len(counts))]


def matrices_of_layers(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Trained weights of the linear maps in transformer layers. Embeddings, inputs and outputs aren't among them."""
    parameters = (p for module in modules for layer in layers(module) for p in layer.parameters())
    return [p for p in parameters if p.requires_grad and p.ndim == 2]


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
