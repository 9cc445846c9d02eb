"""Batches that are read before they are asked for. What is read doesn't change: a batch is a function of its number.

Threads read and decode the batches of the next steps while the learner computes. A batch that was guessed wrong, or
never guessed, is read when it is asked for; so resuming, skipping and ranks need nothing of this.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from dreamer4.data.clips import ALL
from dreamer4.types import Clip


class Batches(Protocol):
    """What tokenizer and dynamics read: `dreamer4.data.clips.ClipSampler`, or several of them mixed."""

    def batch(
        self, step: int, batch: int, length: int, rows: slice | np.ndarray = ALL, contents: bool = True
    ) -> Clip: ...


class Clips(Batches, Protocol):
    """What an agent reads."""

    def mixture(
        self,
        step: int,
        batch: int,
        length: int,
        relevant_E: np.ndarray,
        rows: slice | np.ndarray = ALL,
        contents: bool = True,
    ) -> tuple[Clip, torch.Tensor]: ...


@dataclass(frozen=True)
class _Request:
    """One call, without its step."""

    method: str
    batch: int
    length: int
    relevant_E: np.ndarray | None
    rows: slice | np.ndarray
    contents: bool

    def key(self, step: int) -> tuple[Any, ...]:
        rows = str(self.rows) if isinstance(self.rows, slice) else self.rows.tobytes()
        relevant = None if self.relevant_E is None else np.asarray(self.relevant_E).tobytes()
        return step, self.method, self.batch, self.length, relevant, rows, self.contents


class Prefetch:
    """Reads ahead of a learner that takes the batches of `clips` in order.

    Args:
        ahead: steps that are read before they are asked for, each in a thread of its own.
        shape: batch and length of a step, where they are not those of the step before.
        pin: put tensors into pinned memory, from which they are copied to a GPU while it computes.
    """

    def __init__(
        self,
        clips: Batches,
        ahead: int = 2,
        shape: Callable[[int], tuple[int, int]] | None = None,
        pin: bool = False,
    ):
        self.clips, self.ahead, self.shape, self.pin = clips, ahead, shape, pin
        self._pool = ThreadPoolExecutor(max(1, ahead), "prefetch")
        self._reading: dict[tuple[Any, ...], Future[Any]] = {}
        self.hits = self.misses = 0

    def batch(self, step: int, batch: int, length: int, rows: slice | np.ndarray = ALL, contents: bool = True) -> Clip:
        """As `ClipSampler.batch`."""
        return self._get(step, _Request("batch", batch, length, None, rows, contents))

    def mixture(
        self,
        step: int,
        batch: int,
        length: int,
        relevant_E: np.ndarray,
        rows: slice | np.ndarray = ALL,
        contents: bool = True,
    ) -> tuple[Clip, torch.Tensor]:
        """As `ClipSampler.mixture`."""
        return self._get(step, _Request("mixture", batch, length, relevant_E, rows, contents))

    def close(self) -> None:
        """Reads no further; batches can still be asked for."""
        self._pool.shutdown(cancel_futures=True)
        self._reading, self.ahead = {}, 0

    def _get(self, step: int, request: _Request) -> Any:
        reading = self._reading.pop(request.key(step), None)
        self.hits, self.misses = self.hits + (reading is not None), self.misses + (reading is None)
        for key in [key for key in self._reading if not step <= key[0] <= step + self.ahead]:
            self._reading.pop(key).cancel()
        for later in range(step + 1, step + 1 + self.ahead):
            guess = self._guess(later, request)
            if guess.key(later) not in self._reading:
                self._reading[guess.key(later)] = self._pool.submit(self._read, later, guess)
        return self._read(step, request) if reading is None else reading.result()

    def _guess(self, step: int, request: _Request) -> _Request:
        """The same call at a later step."""
        if self.shape is None:
            return request
        batch, length = self.shape(step)
        return _Request(request.method, batch, length, request.relevant_E, request.rows, request.contents)

    def _read(self, step: int, request: _Request) -> Any:
        more = () if request.relevant_E is None else (request.relevant_E,)
        found = getattr(self.clips, request.method)(
            step, request.batch, request.length, *more, request.rows, request.contents
        )
        if not self.pin:
            return found
        return found.pin_memory() if isinstance(found, Clip) else (found[0].pin_memory(), found[1])
