"""The small records that the loop of stage 4 exchanges with its workers and its learner. No torch in here."""

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """A rollout that somebody imagines. Made and read by the loop."""

    index: int
    version: int  # of the weights
    epoch: int  # of the schedule
    since: float = field(default_factory=time.monotonic)


class StaleWeightsError(Exception):
    """A rank got weights of another version than its request names; the loop asks the learner for them again.

    Ray may answer a reference that was lost by doing an update again, which a restarted learner answers with the
    weights that it has.
    """

    @classmethod
    def check(cls, index: int, wanted: int, got: int) -> None:
        if got != wanted:
            raise cls(f"rollout {index} needs weights {wanted} and got {got}")


@dataclass(frozen=True)
class Cost:
    """What a rollout has cost. Made by a rank of a worker, read by the loop."""

    frames: int  # imagined
    seconds: float  # the rank was busy for
    cpu_seconds: float  # of its process since it last told; the start of the process included
    bytes: int = 0  # of the rollout's arrays


@dataclass(frozen=True)
class Told:
    """An answer of the learner. Read by the loop."""

    updates: int  # applied so far
    applied: bool = False  # by this call
    saved: bool = False  # by this call
    metrics: dict[str, float] | None = None
    seconds: float = 0.0  # that the call took
    cpu_seconds: float = 0.0  # of the process since it last told, its start included
    process: int = 0
