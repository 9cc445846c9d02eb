"""Parts of a batch: what one pass of one process computes, where several share an update.

A batch, its noise and its signal levels are functions of (seed, stage, index), whoever computes them: every process
draws them for the whole batch and keeps its own rows. So the parts of an update add up to what one process would do.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Every `parts`-th of `batch` rows, from row `number` on."""

    batch: int
    number: int = 0
    parts: int = 1

    @property
    def whole(self) -> bool:
        return self.parts == 1

    @property
    def index(self) -> slice:
        return slice(self.number, None, self.parts)

    @property
    def share(self) -> float:
        """Of the batch; the parts differ by one row at most."""
        return len(range(self.number, self.batch, self.parts)) / self.batch

    def of(self, drawn: Tensor) -> Tensor:
        """These rows of something that was drawn for the whole batch."""
        return drawn if self.whole else drawn[self.index]

    def normal(self, shape: tuple[int, ...], noise: torch.Generator) -> Tensor:
        """Standard normal numbers `[rows, *shape]`, the same whatever the parts."""
        return self.of(torch.randn((self.batch, *shape), generator=noise, device=noise.device))

    def leading(self, count: int) -> int:
        """How many rows to take, so that all parts take equally many and none misses one of the first `count`."""
        return -(-count // self.parts)


@dataclass(frozen=True)
class Part:
    """Part number `number` of `parts` of any batch."""

    number: int = 0
    parts: int = 1

    @property
    def whole(self) -> bool:
        return self.parts == 1

    def rows(self, batch: int) -> Rows:
        return Rows(batch, self.number, self.parts)


WHOLE = Part()
