"""Nested frozen dataclasses as JSON, with one sentence for every mistake, and KEY=VALUE on top of them."""

import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from dreamer4.errors import ConfigError

T = TypeVar("T")
EXAMPLES: dict[Any, Sequence[Any]] = {str: "abcd", int: range(1, 5), float: (0.5, 1.5, 2.5, 3.5)}  # of lists


class Difference(NamedTuple):
    """A key that two configurations disagree on."""

    key: str
    first: Any
    second: Any


def to_json(config: Any) -> dict[str, Any]:
    """A configuration as nested dicts and lists; `from_json` is the inverse."""
    return {field.name: _plain(getattr(config, field.name)) for field in fields(config)}


def from_json(kind: type[T], value: Any, key: str = "") -> T:
    """Builds a configuration from nested dicts; keys that are left out take their defaults.

    Args:
        key: where `value` lies in the whole configuration, for messages.

    Raises:
        ConfigError: a key is unknown or missing, a value has the wrong type, or the class refuses the combination.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key or 'the configuration'} must be an object of keys and values, got {value!r}")
    hints = _hints(kind)
    for name in value:
        if name not in hints:
            raise _unknown(kind, name, key)
    for field in fields(typing.cast(Any, kind)):
        if field.name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"key '{_join(key, field.name)}' is missing")
    return kind(**{name: _convert(hints[name], child, _join(key, name)) for name, child in value.items()})


def override(config: T, assignments: Iterable[str]) -> T:
    """A copy with `["dynamics.width=128", ...]` applied, all at once, so that coupled keys can change together.

    Numbers, `true`, `false`, `none` and strings are written bare, lists as JSON: `tokenizer.frame=[64,64,3]`.

    Raises:
        ConfigError: unknown key (with the nearest), wrong type, or an impossible combination.
    """
    values = to_json(config)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"'{assignment}' is not KEY=VALUE, such as seed=1")
        *path, name = key.split(".")
        kind, place = type(config), values
        for i, part in enumerate(path):
            section = _hints(kind).get(part)
            if not is_dataclass(section):
                raise _unknown(kind, ".".join([*path[i:], name]), ".".join(path[:i]))
            kind, place = section, place[part]
        hint = _hints(kind).get(name)
        if hint is None:
            raise _unknown(kind, name, ".".join(path))
        if is_dataclass(hint):
            raise ConfigError(f"'{key}' is a section: set one of its keys: {', '.join(_hints(hint))}")
        place[name] = _parse(hint, text, key)
    return from_json(type(config), values)


def differences(first: Any, second: Any) -> list[Difference]:
    """Dotted keys at which two configurations of one class differ, with both values, in the order of the fields."""
    there = dict(_leaves(to_json(second)))
    return [Difference(key, value, there[key]) for key, value in _leaves(to_json(first)) if value != there[key]]


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_json(value)
    if isinstance(value, Mapping):
        return {key: _plain(child) for key, child in value.items()}
    return [_plain(child) for child in value] if isinstance(value, list | tuple) else value


def _leaves(values: Mapping[str, Any], key: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, _join(key, name))
        else:
            yield _join(key, name), value


def _keys(kind: Any, key: str = "") -> Iterator[str]:
    """Dotted names of everything below a class that can be set."""
    for name, hint in _hints(kind).items():
        if is_dataclass(hint):
            yield from _keys(hint, _join(key, name))
        else:
            yield _join(key, name)


def _hints(kind: Any) -> dict[str, Any]:
    """Field names and resolved types; without class variables and properties."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _unknown(kind: Any, name: str, key: str) -> ConfigError:
    """Names the nearest key below section `key`, or the section's own keys where none is near."""
    whole = {**{leaf.rpartition(".")[2]: leaf for leaf in _keys(kind)}, **{leaf: leaf for leaf in _keys(kind)}}
    close = difflib.get_close_matches(name, list(whole), n=1, cutoff=0.6)
    if close:
        hint = f"did you mean '{_join(key, whole[close[0]])}'?"
    else:
        hint = f"known{f' in {key}' if key else ''}: {', '.join(_hints(kind))}"
    return ConfigError(f"unknown key '{_join(key, name)}'; {hint}")


def _alternatives(hint: Any) -> list[Any]:
    """The types of `a | b`, else the type alone."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return list(typing.get_args(hint)) if union else [hint]


def _parse(hint: Any, text: str, key: str) -> Any:
    """The JSON value that a text stands for, where a value of type `hint` is expected."""
    kinds = _alternatives(hint)
    if type(None) in kinds and text.lower() in ("none", "null"):
        return None
    for kind in kinds:
        try:
            if kind is bool:
                return {"true": True, "false": False}[text.lower()]
            if kind in (int, float):
                return kind(text)
            if kind is str or typing.get_origin(kind) is Literal:
                return text
            if kind is not type(None):
                return json.loads(text)
        except (KeyError, ValueError):
            continue
    raise _mismatch(hint, text, key)


def _convert(hint: Any, value: Any, key: str) -> Any:
    """Checks a JSON value against a type; whole numbers pass as floats, lists become tuples where these are wanted."""
    for kind in _alternatives(hint):
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if is_dataclass(kind):
            return from_json(typing.cast(type, kind), value, key)
        if origin is Literal:
            if value in arguments:
                return value
        elif kind is float:
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                return float(value)
        elif kind is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        elif origin is tuple:
            many = len(arguments) == 2 and arguments[1] is Ellipsis
            if isinstance(value, list | tuple) and (many or len(value) == len(arguments)):
                kinds = [arguments[0]] * len(value) if many else arguments
                pairs = zip(kinds, value, strict=True)
                return tuple(_convert(inner, child, f"{key}[{i}]") for i, (inner, child) in enumerate(pairs))
        elif origin in (list, Sequence):
            if isinstance(value, list | tuple):
                return [_convert(arguments[0], child, f"{key}[{i}]") for i, child in enumerate(value)]
        elif kind is Any or isinstance(value, origin or kind):
            return value
    raise _mismatch(hint, value, key)


def _mismatch(hint: Any, value: Any, key: str) -> ConfigError:
    wanted = " or ".join(_describe(kind, key) for kind in _alternatives(hint))
    return ConfigError(f"{key} must be {wanted}, got {value!r}")


def _describe(kind: Any, key: str) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin is tuple:
        many = arguments[1:] == (Ellipsis,)
        example = json.dumps(list(EXAMPLES[arguments[0]][: 2 if many else len(arguments)]))
        return f"a list of {'' if many else f'{len(arguments)} '}{arguments[0].__name__}, such as {key}='{example}'"
    if origin is not None:
        return "a list" if origin in (list, Sequence) else "an object"
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", type(None): "none"}
    return names.get(kind, str(kind))
