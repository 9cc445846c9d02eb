"""Muon (Jordan et al., 2024): the momentum of a matrix, made orthogonal, is its update.

`torch.optim.Muon` takes the matrices one after the other and multiplies in bfloat16, which most CPUs have to emulate.
Here matrices of one shape are taken together, in float32 on CPUs: a quarter of the time for a world model of laptop
size (docs/log.md, 2026-11-29).
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that draws singular values near 1 soonest, by Jordan
STEPS = 5
EPS = 1e-7


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices `[N, R, C]` with the same singular vectors and all but tiny singular values near 1 (0.5 to 1.3)."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(EPS)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """For parameters with two dimensions, which may be sharded.

    A step is as long as AdamW's for every shape of matrix (0.2 per entry: `match_rms_adamw` of torch's Muon), so
    that their learning rates can be compared.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Nesterov's momentum, orthogonal; decay as AdamW's."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            alike: defaultdict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                updates = orthogonal(torch.stack([_whole(self._update(p, momentum)) for p in parameters]))
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - lr * group["weight_decay"])
                    parameter.add_(_share(update, parameter), alpha=-lr * 0.2 * math.sqrt(max(shape)))

    def _update(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum)


def _whole(matrix: Tensor) -> Tensor:
    """A sharded matrix, gathered: every rank makes it orthogonal by itself."""
    return matrix.full_tensor() if isinstance(matrix, DTensor) else matrix


def _share(matrix: Tensor, like: Tensor) -> Tensor:
    """What this rank holds of a matrix that all ranks have."""
    if not isinstance(like, DTensor):
        return matrix
    mesh = like.device_mesh
    return DTensor.from_local(matrix, mesh, [Replicate()] * mesh.ndim).redistribute(mesh, like.placements)
