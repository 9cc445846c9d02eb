"""Which windows of the validation episodes are looked at: seeded, without replacement, with their real continuation."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dreamer4.data.clips import Axis
from dreamer4.data.distinct import digests
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.errors import DataError
from dreamer4.rng import numpy_generator


@dataclass(frozen=True)
class Continuations:
    """N contexts of C frames and the H frames that follow them.

    `context_NC` and `following_NH` are positions in the dataset; `known_NH` is false beyond the end of the episode,
    where `following_NH` repeats its last frame.
    """

    context_NC: np.ndarray
    following_NH: np.ndarray
    known_NH: np.ndarray

    def parts(self, rows: int) -> Iterator[tuple[int, "Continuations"]]:
        """The windows, at most `rows` at a time, with the number of the first one."""
        for start in range(0, len(self), rows):
            chosen = slice(start, start + rows)
            yield start, Continuations(self.context_NC[chosen], self.following_NH[chosen], self.known_NH[chosen])

    def __len__(self) -> int:
        return len(self.context_NC)


class Windows:
    """Windows over some episodes, laid end to end as `dreamer4.data.clips` does.

    A context may begin in an earlier episode, as the contexts of imagination do; its last frame and what follows lie
    in one.

    Raises:
        DataError: the episodes have fewer frames than a context, or no frame follows another.
    """

    def __init__(self, dataset: EpisodeDataset, episodes_E: np.ndarray, context: int, seed: int):
        self.dataset, self.context, self.seed = dataset, context, seed
        self.axis = Axis.of(dataset, np.asarray(episodes_E, bool))
        if len(self.axis) < context:
            raise DataError(
                f"contexts of {context} frames are to be inspected, but the validation episodes of "
                f"'{dataset.folder}' have {len(self.axis)} frames: collect more or raise data.validation"
            )
        lengths = self.axis.lengths_E
        self.past_F = np.arange(len(self.axis)) - np.repeat(self.axis.starts_E, lengths)  # frames before, same episode
        self.future_F = np.repeat(lengths, lengths) - 1 - self.past_F  # frames after, same episode
        if not self.future_F.any():
            raise DataError(f"all validation episodes of '{dataset.folder}' have a single frame: record longer ones")

    def arriving(self, use: str, count: int) -> np.ndarray:
        """`[N, C]` contexts whose last frame has a reward: half of them, where there are as many, end at an event.

        An event is a reward other than 0, or a terminal frame. They are rare, and what is measured is conditional.
        """
        frame_F = self.axis.frames(np.arange(len(self.axis)))
        event_F = (self.dataset.reward_F[frame_F] != 0) | self.dataset.terminal_F[frame_F]
        known_F = self.past_F > 0
        events = self._draw(use, np.flatnonzero(known_F & event_F))[: count // 2]
        others = self._draw(use, np.flatnonzero(known_F & ~event_F))[: count - len(events)]
        return self._contexts(np.concatenate([events, others]))

    def uniform(self, use: str, count: int, steps: int) -> Continuations:
        """Contexts that end at any frame which another one follows; the longest continuations come first.

        What is long is not preferred in the choice: in long episodes little happens, so anything that is measured on
        them alone looks steady.
        """
        return self._longest_first(self._draw(use, np.flatnonzero(self.future_F > 0))[:count], steps)

    def distinct(self, use: str, count: int, steps: int) -> Continuations:
        """The same of frames no two of which are equal.

        What is rare counts as much here as what is frequent: where a policy goes and the recordings seldom went, a
        model can be wrong without moving any mean over all frames.
        """
        places = self._draw(use, np.flatnonzero(self.future_F > 0))
        first = {}
        for place, digest in zip(places, digests(self.dataset, self.axis.frames(places)), strict=True):
            first.setdefault(digest, place)
        return self._longest_first(np.array(list(first.values())[:count]), steps)

    def _longest_first(self, places_N: np.ndarray, steps: int) -> Continuations:
        order = np.argsort(-np.minimum(self.future_F[places_N], steps), kind="stable")
        return self._continued(places_N[order], steps)

    def _draw(self, use: str, places: np.ndarray) -> np.ndarray:
        return numpy_generator(self.seed, "inspection windows", use).permutation(places)

    def _contexts(self, ends_N: np.ndarray) -> np.ndarray:
        back_C = np.arange(1 - self.context, 1)
        return self.axis.frames((ends_N[:, None] + back_C) % len(self.axis))

    def _continued(self, ends_N: np.ndarray, steps: int) -> Continuations:
        ahead_H = np.arange(1, steps + 1)
        future_N1 = self.future_F[ends_N][:, None]
        following = self.axis.frames(ends_N[:, None] + np.minimum(ahead_H, future_N1))
        return Continuations(self._contexts(ends_N), following, ahead_H <= future_N1)
