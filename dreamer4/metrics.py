"""Figures of merit with their uncertainty."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dreamer4.errors import DataError


def psnr(a_HWC: Tensor, b_HWC: Tensor) -> Tensor:
    """Peak signal-to-noise ratio `[...]` in dB of images `[..., H, W, C]`, floats from 0 to 1; infinite where equal."""
    error = (a_HWC.float() - b_HWC.float()).square().mean(dim=(-3, -2, -1))
    return -10 * torch.log10(error)


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson interval of a success probability, 95 % by default; useful bounds also at 0 or n successes.

    Raises:
        DataError: not 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise DataError(f"{successes} successes of {n} episodes is impossible")
    if n == 0:
        return 0.0, 1.0
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    margin = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, centre - margin), min(1.0, centre + margin)


def mean_stderr(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; the error of a single value is not known: nan.

    Raises:
        DataError: there are no values.
    """
    n = len(values)
    if n == 0:
        raise DataError("there are no values to average; play at least one episode")
    mean = math.fsum(values) / n
    if n == 1:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, math.sqrt(variance / n)
