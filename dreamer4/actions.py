"""Action spaces made of parts, and how actions are written as one row of numbers (paper, section 3.2).

An action is a float32 row of `A` columns: a categorical part takes one column (the index), a binary part of n keys n
columns (0 or 1), a continuous part of n axes n columns. Policy head and action encoder read the parts separately.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dreamer4.errors import DataError
from dreamer4.foveation import Foveation

Kind = Literal["categorical", "binary", "continuous"]


@dataclass(frozen=True)
class Part:
    """One component of an action: `size` classes of a categorical, keys of a binary, or axes of a continuous part.

    Raises:
        DataError: there is a foveation, and it has another number of classes.
    """

    name: str
    kind: Kind
    size: int
    foveation: Foveation | None = None  # of a categorical part whose classes are mouse movements

    def __post_init__(self) -> None:
        if self.foveation is not None and (self.kind, self.size) != ("categorical", self.foveation.classes):
            raise DataError(
                f"action part '{self.name}' is {self.kind} of size {self.size}; mouse movement in "
                f"{self.foveation.bins} bins per axis is categorical of size {self.foveation.classes}"
            )

    @property
    def columns(self) -> int:
        return 1 if self.kind == "categorical" else self.size


@dataclass(frozen=True)
class ActionSpace:
    """The parts of an action, in the order of their columns."""

    parts: tuple[Part, ...]

    @classmethod
    def discrete(cls, count: int, name: str = "action") -> "ActionSpace":
        return cls((Part(name, "categorical", count),))

    @classmethod
    def from_json(cls, parts: Sequence[dict[str, Any]]) -> "ActionSpace":
        return cls(tuple(_part_from_json(part) for part in parts))

    def to_json(self) -> list[dict[str, Any]]:
        """A part without a foveation has no such key."""
        return [{key: value for key, value in asdict(part).items() if value is not None} for part in self.parts]

    @property
    def columns(self) -> int:
        return sum(part.columns for part in self.parts)

    def split(self, actions_A: Tensor) -> list[Tensor]:
        """Columns of every part, `[..., part.columns]`, in order."""
        if actions_A.shape[-1] != self.columns:
            raise DataError(
                f"actions have {actions_A.shape[-1]} columns, this action space has {self.columns}: "
                f"{[part.name for part in self.parts]}"
            )
        return list(actions_A.split([part.columns for part in self.parts], dim=-1))

    def check(self, actions_NA: np.ndarray) -> None:
        """Raises `DataError`, naming part and value, if an action is outside of the space."""
        if actions_NA.shape[-1] != self.columns:
            raise DataError(f"actions have {actions_NA.shape[-1]} columns, this action space has {self.columns}")
        start = 0
        for part in self.parts:
            values = actions_NA[..., start : start + part.columns]
            start += part.columns
            if not np.isfinite(values).all():
                raise DataError(f"action part '{part.name}' holds a value that is not finite")
            if part.kind == "continuous" or values.size == 0:
                continue
            top = part.size - 1 if part.kind == "categorical" else 1
            bad = (values != np.round(values)) | (values < 0) | (values > top)
            if bad.any():
                raise DataError(
                    f"action part '{part.name}' holds {values[bad].flat[0]:g}; it takes whole numbers from 0 to {top}"
                )

    def random(self, count: int, generator: torch.Generator) -> Tensor:
        """`[count, A]` uniform actions; continuous parts are uniform in (-1, 1)."""
        columns: list[Tensor] = []
        for part in self.parts:
            if part.kind == "categorical":
                columns.append(torch.randint(part.size, (count, 1), generator=generator).float())
            elif part.kind == "binary":
                columns.append(torch.randint(2, (count, part.size), generator=generator).float())
            else:
                columns.append(torch.rand((count, part.size), generator=generator) * 2 - 1)
        return torch.cat(columns, dim=-1)


def _part_from_json(record: dict[str, Any]) -> Part:
    foveation = record.get("foveation")
    return Part(**{**record, "foveation": None if foveation is None else Foveation(**foveation)})
