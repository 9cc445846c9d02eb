"""Our Muon against torch's, which rounds to bfloat16."""

from typing import Any

import pytest
import torch
from torch import nn

from learners.muon import Muon, orthogonal

SHAPES = [(16, 16), (16, 16), (40, 16), (16, 48)]


def parameters() -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in SHAPES]


def torchs(ours: list[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.Muon(ours, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")


def moved(rule: Any, weights: list[nn.Parameter], steps: int = 5) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    before = [w.detach().clone() for w in weights]
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=random)
        rule.step()
    return [w.detach() - b for w, b in zip(weights, before, strict=True)]


def apart(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def test_it_steps_as_torchs_muon():
    ours, theirs = parameters(), parameters()
    expected = moved(torchs(theirs, 0.02, 0.1), theirs)
    assert apart(moved(Muon(ours, 0.02, 0.1), ours), expected) < 0.02  # bfloat16 has 8 bits
    for other in ({"momentum": 0.8}, {"weight_decay": 0.5}, {"lr": 0.025}):
        ours = parameters()
        assert apart(moved(Muon(ours, **{"lr": 0.02, "weight_decay": 0.1, **other}), ours), expected) > 0.04, other


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_all_singular_values_come_near_one_and_their_vectors_stay(shape: tuple[int, int]):
    random = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, *shape, generator=random) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    found = orthogonal(matrices)
    assert ((torch.linalg.svdvals(found) > 0.5) & (torch.linalg.svdvals(found) < 1.3)).all()
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    rotated = u.mT @ found @ v.mT
    off = rotated - torch.diag_embed(rotated.diagonal(dim1=-2, dim2=-1))
    assert off.abs().max() < 1e-3


def test_a_matrix_of_zeros_stays_and_one_without_a_gradient_too():
    zero, idle = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    zero.grad = torch.zeros(4, 4)
    Muon([zero, idle], 0.1, 0.0).step()
    assert torch.equal(zero.detach(), torch.ones(4, 4)) and torch.equal(idle.detach(), torch.ones(4, 4))
