"""Rows that lie in many places, read as one array."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np


class Rows(ABC):
    """A read-only array `[F, *shape]` whose rows are fetched when they are asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @abstractmethod
    def take(self, index: np.ndarray) -> np.ndarray:
        """Rows at an index array of any shape, `[*index.shape, *shape]`, a copy.

        Raises:
            IndexError: a position is outside.
        """

    def between(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop - 1`."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start} to {stop} of {len(self)}")
        return self.take(np.arange(start, stop))

    def check(self, index: np.ndarray) -> None:
        """Positions are not wrapped around: -1 would silently be the last frame of another episode."""
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"rows {index.min()} to {index.max()} of {len(self)}")

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self.between(0, len(self)).astype(dtype or self.dtype, copy=False)

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self.between(start, max(start, stop)) if step == 1 else self.take(np.arange(start, stop, step))
        return self.take(np.asarray(index))


def runs(key_N: np.ndarray) -> list[tuple[int, int]]:
    """`begin, end` of every stretch of equal neighbours."""
    if not len(key_N):
        return []
    changes = np.flatnonzero(key_N[1:] != key_N[:-1]) + 1
    return list(zip([0, *changes.tolist()], [*changes.tolist(), len(key_N)], strict=True))


class Pieces(Rows):
    """Arrays end to end, never joined.

    Args:
        pieces: arrays `[F_i, *shape]` of one shape and type.
    """

    def __init__(self, pieces: Sequence[np.ndarray]):
        self.pieces = list(pieces)
        self.ends = np.cumsum([len(piece) for piece in self.pieces])
        self.shape = (int(self.ends[-1]), *self.pieces[0].shape[1:])
        self.dtype = self.pieces[0].dtype

    def between(self, start: int, stop: int) -> np.ndarray:
        """A view where they lie in one piece, otherwise a copy."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start} to {stop} of {len(self)}")
        piece = int(np.searchsorted(self.ends, start, side="right")) if start < len(self) else len(self.ends) - 1
        origin = int(self.ends[piece]) - len(self.pieces[piece])
        if stop <= self.ends[piece]:
            return self.pieces[piece][start - origin : stop - origin]
        return self.take(np.arange(start, stop))

    def take(self, index: np.ndarray) -> np.ndarray:
        self.check(index)
        result = np.empty((index.size, *self.shape[1:]), self.dtype)
        flat = index.reshape(-1)
        piece = np.searchsorted(self.ends, flat, side="right")
        for begin, end in runs(piece):
            rows = self.pieces[piece[begin]]
            result[begin:end] = rows[flat[begin:end] - (self.ends[piece[begin]] - len(rows))]
        return result.reshape(*index.shape, *self.shape[1:])
