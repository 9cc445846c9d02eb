"""What every importer yields: one step per frame, in order. Here they become the parts that the writer takes.

The storage contract (rule R1 of docs/importing.md; `dreamer4.types`): a step's action is chosen at its frame and shows
its effect in the next one, its reward and events came with its frame. An episode's last frame therefore has no known
action, whatever the recording says of it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from dreamer4.types import Ending, EpisodePart

PART_FRAMES = 64


@dataclass(frozen=True)
class Step:
    """One frame of a recording and what is known about it."""

    frame_HWC: np.ndarray  # uint8
    act_out_A: np.ndarray | None = None  # float32, chosen at the frame; None = the recording has no action
    reward: float = 0.0  # on arrival
    events_K: np.ndarray | None = None  # bool per task, on arrival
    terminal: bool = False
    truncated: bool = False
    success: bool = False  # so far
    episode: int = 0  # within the source; a higher number than the step before begins a new episode


@dataclass(frozen=True)
class Recorded:
    """One episode of a source; its parts have to be read before the next episode is asked for."""

    parts: Iterator[EpisodePart]
    source: str
    task: int = 0


def episodes_of(steps: Iterable[Step], source: str, columns: int, task: int = 0) -> Iterator[Recorded]:
    """The episodes of a stream of steps.

    Args:
        columns: of the action space.
    """
    for _, run in groupby(steps, key=lambda step: step.episode):
        yield Recorded(in_parts(run, columns), source, task)


def in_parts(steps: Iterable[Step], columns: int, size: int = PART_FRAMES) -> Iterator[EpisodePart]:
    """The steps of one episode, up to `size` at a time."""
    waiting: list[Step] = []
    for step in steps:
        if len(waiting) == size:
            yield _part(waiting, columns)
            waiting = []
        waiting.append(step)
    if waiting:
        yield _part(waiting, columns, last=True)


def _part(steps: list[Step], columns: int, last: bool = False) -> EpisodePart:
    known = np.array([step.act_out_A is not None for step in steps])
    if last:
        known[-1] = False
    act_out = np.zeros((len(steps), columns), np.float32)
    for row, step in enumerate(steps):
        if known[row]:
            act_out[row] = step.act_out_A
    end = steps[-1]
    return EpisodePart(
        frames_THWC=np.stack([step.frame_HWC for step in steps]),
        act_out_TA=act_out,
        act_known_T=known,
        reward_T=np.array([step.reward for step in steps], np.float32),
        events_TK=None if end.events_K is None else np.stack([step.events_K for step in steps]),  # type: ignore[arg-type]
        end=Ending(end.terminal, end.truncated, end.success) if last else None,
    )
