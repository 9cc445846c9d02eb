"""Weights of a frozen model laid out for the CPU's matrix kernels once, instead of again in every product.

With few rows per product, as in imagination with few streams, laying out the weights is a good part of its cost. The
layout depends on the number of rows, so each that occurs gets its own copy, the first time it occurs.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamer4.transformer import Transformer

MOST_COPIES = 4  # of a matrix, for as many numbers of rows; others are multiplied as usual
MOST_ROWS = 4096  # beyond, laying out is a small part


class PackedLinear(nn.Linear):
    """A linear layer without bias that keeps its weights laid out; the parameter and its name stay as they are."""

    packs: dict[int, Tensor]
    packed_version: int

    def forward(self, input: Tensor) -> Tensor:
        rows = input.numel() // self.in_features
        if torch.is_grad_enabled() or input.dtype != torch.float32 or not 0 < rows <= MOST_ROWS:
            return F.linear(input, self.weight)
        if self.packed_version != self.weight._version:  # the weights have changed
            self.packs, self.packed_version = {}, self.weight._version
        if rows not in self.packs:
            if len(self.packs) == MOST_COPIES:
                return F.linear(input, self.weight)
            self.packs[rows] = torch.ops.mkl._mkl_reorder_linear_weight(self.weight, rows)
        return torch.ops.mkl._mkl_linear(input, self.packs[rows], self.weight, None, rows)


def pack(transformer: Transformer) -> bool:
    """Makes the products of a frozen transformer faster, in place, where this torch and device can; says whether.

    Sharded weights stay as they are.
    """
    if not hasattr(torch.ops.mkl, "_mkl_linear"):
        return False
    linears = [module for module in transformer.modules() if isinstance(module, nn.Linear)]
    weights = [linear.weight for linear in linears]
    if any(type(w) is not nn.Parameter or w.device.type != "cpu" or w.dtype != torch.float32 for w in weights):
        return False
    for linear in linears:
        linear.__class__ = PackedLinear
        packed = cast(PackedLinear, linear)
        packed.packs, packed.packed_version = {}, linear.weight._version
    return True
