"""Gymnasium's action spaces as parts of ours, and their actions as rows."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dreamer4.actions import ActionSpace, Part
from dreamer4.errors import DataError


def action_space(space: gymnasium.Space) -> ActionSpace:
    """Discrete becomes a categorical part, MultiDiscrete several, MultiBinary a binary one, Box a continuous one.

    Dict and Tuple are their parts in order, with names such as `hand.grip`.

    Raises:
        DataError: the space is of another kind.
    """
    return ActionSpace(tuple(_parts(space, "")))


def action_rows(space: gymnasium.Space, actions: Any, count: int) -> np.ndarray:
    """Float32 `[count, A]` of actions stored as arrays over time, in the nesting of the space.

    Raises:
        DataError: there are not `count` of them, or they don't fit the space.
    """
    columns = list(_columns(space, actions, ""))
    for name, values in columns:
        if len(values) != count:
            raise DataError(f"action '{name}' has {len(values)} rows where {count} are wanted")
    return np.concatenate([values for _, values in columns], axis=1)


def space_from_json(text: str | Mapping[str, Any]) -> gymnasium.Space:
    """An action space as Minari writes it; raises `DataError` if it is none."""
    try:
        record = json.loads(text) if isinstance(text, str) else text
        return _from_record(record)
    except (KeyError, TypeError, ValueError, AssertionError, RecursionError) as error:
        raise DataError(f"not an action space of a kind that can be imported: {error!r:.200}") from error


def space_to_json(space: gymnasium.Space) -> dict[str, Any]:
    """What `space_from_json` reads; raises `DataError` if the space is of another kind."""
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": list(space.shape)}
    if isinstance(space, spaces.Box):
        low, high = space.low.tolist(), space.high.tolist()
        return {"type": "Box", "dtype": str(space.dtype), "shape": list(space.shape), "low": low, "high": high}
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "subspaces": {name: space_to_json(inner) for name, inner in space.items()}}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "subspaces": [space_to_json(inner) for inner in space]}
    raise _unknown(space, "")


def _parts(space: gymnasium.Space, name: str) -> list[Part]:
    label = name or "action"
    if isinstance(space, spaces.Discrete):
        return [Part(label, "categorical", int(space.n))]
    if isinstance(space, spaces.MultiDiscrete):
        return [Part(f"{label}.{i}", "categorical", int(n)) for i, n in enumerate(space.nvec.reshape(-1))]
    if isinstance(space, spaces.MultiBinary):
        return [Part(label, "binary", int(np.prod(space.shape)))]
    if isinstance(space, spaces.Box):
        return [Part(label, "continuous", int(np.prod(space.shape)))]
    return [part for inner, below in _inner(space, name) for part in _parts(below, inner)]


def _columns(space: gymnasium.Space, actions: Any, name: str) -> list[tuple[str, np.ndarray]]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        found = []
        for (inner, below), key in zip(_inner(space, name), _keys(space), strict=True):
            try:
                found += _columns(below, actions[key], inner)
            except (KeyError, IndexError, TypeError) as error:
                raise DataError(f"action '{inner}' is missing in the recording") from error
        return found
    try:
        values = np.asarray(actions, np.float32)
        values = values.reshape(len(values), -1)
    except (TypeError, ValueError) as error:
        raise DataError(f"action '{name or 'action'}' is not made of numbers: {error}") from error
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        values = values - np.asarray(space.start, np.float32).reshape(1, -1)
    width = sum(part.columns for part in _parts(space, name))
    if len(values) and values.shape[1] != width:
        raise DataError(f"action '{name or 'action'}' has {values.shape[1]} values, its space {width}")
    return [(name or "action", values.reshape(len(values), width))]


def _inner(space: gymnasium.Space, name: str) -> list[tuple[str, gymnasium.Space]]:
    before = f"{name}." if name else ""
    if isinstance(space, spaces.Dict):
        return [(f"{before}{key}", inner) for key, inner in space.items()]
    if isinstance(space, spaces.Tuple):
        return [(f"{before}{index}", inner) for index, inner in enumerate(space)]
    raise _unknown(space, name)


def _keys(space: spaces.Dict | spaces.Tuple) -> Sequence[Any]:
    return list(space.keys()) if isinstance(space, spaces.Dict) else range(len(space))


def _unknown(space: gymnasium.Space, name: str) -> DataError:
    return DataError(
        f"action '{name or 'action'}' is of space {type(space).__name__}; Discrete, MultiDiscrete, MultiBinary, Box, "
        "Dict and Tuple can be imported"
    )


def _from_record(record: Mapping[str, Any]) -> gymnasium.Space:
    kind = record["type"]
    if kind == "Discrete":
        return spaces.Discrete(int(record["n"]), start=int(record["start"]))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(record["nvec"], start=record["start"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(record["n"])
    if kind == "Box":
        dtype = np.dtype(record["dtype"]).type
        shape = tuple(int(side) for side in record["shape"])
        low, high = np.array(record["low"], dtype), np.array(record["high"], dtype)
        return spaces.Box(low.reshape(shape), high.reshape(shape), shape, dtype)
    if kind == "Dict":
        return spaces.Dict({name: _from_record(inner) for name, inner in record["subspaces"].items()})
    if kind == "Tuple":
        return spaces.Tuple([_from_record(inner) for inner in record["subspaces"]])
    raise ValueError(f"space of type {kind!r}")
