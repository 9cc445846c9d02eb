"""Rows that lie in many memory-mapped pieces, read as one array."""

from collections.abc import Sequence

import numpy as np


class Rows:
    """A read-only array `[F, *shape]` in pieces along its first axis; the pieces are views of files, never joined.

    Args:
        pieces: arrays `[F_i, *shape]` of one shape and type.
    """

    def __init__(self, pieces: Sequence[np.ndarray]):
        self.pieces = list(pieces)
        self.ends = np.cumsum([len(piece) for piece in self.pieces])
        self.shape = (int(self.ends[-1]), *self.pieces[0].shape[1:])
        self.dtype = self.pieces[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self.between(0, len(self)).astype(dtype or self.dtype, copy=False)

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self.between(start, max(start, stop)) if step == 1 else self.take(np.arange(start, stop, step))
        return self.take(np.asarray(index))

    def between(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop - 1`: a view where they lie in one piece, otherwise a copy."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start} to {stop} of {len(self)}")
        piece = int(np.searchsorted(self.ends, start, side="right")) if start < len(self) else len(self.ends) - 1
        origin = int(self.ends[piece]) - len(self.pieces[piece])
        if stop <= self.ends[piece]:
            return self.pieces[piece][start - origin : stop - origin]
        return self.take(np.arange(start, stop))

    def take(self, index: np.ndarray) -> np.ndarray:
        """Rows at an index array of any shape, `[*index.shape, *shape]`, a copy.

        Neighbouring indices in one piece are read in one go, so windows cost one copy each.
        """
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"rows {index.min()} to {index.max()} of {len(self)}")
        result = np.empty((index.size, int(np.prod(self.shape[1:]))), self.dtype)
        flat = index.reshape(-1)
        piece = np.searchsorted(self.ends, flat, side="right")
        changes = np.flatnonzero(piece[1:] != piece[:-1]) + 1
        for begin, end in zip([0, *changes], [*changes, flat.size], strict=True):
            if begin == end:
                continue
            rows = self.pieces[piece[begin]]
            origin = self.ends[piece[begin]] - len(rows)
            # mode "clip" is numpy's only mode that writes to `out` without a buffer; indices are checked above.
            np.take(rows.reshape(len(rows), -1), flat[begin:end] - origin, axis=0, out=result[begin:end], mode="clip")
        return result.reshape(*index.shape, *self.shape[1:])
