"""One line of a VPT recording's jsonl: what the recorder knew at one tick of the game.

The file is one JSON object per line, not a JSON document. Recorders before 6.13 write null for `mouse` or `keyboard`
where nothing happened (rule R10 of docs/importing.md), those before 6.11 have no `hotbar`.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamer4.errors import DataError

LONGEST_LINE = 4 << 20  # bytes; real lines have about 2 kB, and a damaged file may have no line ends
LARGEST = 1e9  # no number of a recording that we use is beyond


@dataclass(frozen=True)
class Mouse:
    """Positions in pixels of the recording player's window; movement in pixels, divided by the GUI's scale in GUIs."""

    x: float
    y: float
    dx: float
    dy: float
    scaled: tuple[float, float] | None  # x and y in the GUI's own pixels
    buttons: tuple[int, ...]
    new_buttons: tuple[int, ...]


@dataclass(frozen=True)
class Tick:
    """One line. `row` counts from 1, as editors do."""

    row: int
    tick: int
    milli: float
    mouse: Mouse | None
    keys: tuple[str, ...]
    gui: bool
    hotbar: int | None  # slot 0 to 8
    pitch_yaw: tuple[float, float] | None  # degrees
    stats: dict[str, int]  # counters of the game since the player joined


def read_ticks(path: Path) -> Iterator[Tick]:
    """The ticks of a recording, one at a time.

    Raises:
        DataError: naming file and row: it can't be read, or a line is broken or lacks a field.
    """
    try:
        with open(path, "rb") as file:
            row = 0
            while line := file.readline(LONGEST_LINE + 1):
                row += 1
                if len(line) > LONGEST_LINE:
                    raise DataError(f"'{path}' row {row} has more than {LONGEST_LINE} bytes: it is damaged")
                if line.strip():
                    yield parse_tick(line, path, row)
    except OSError as error:
        raise DataError(f"can't read '{path}': {error.strerror or error}") from error


def parse_tick(line: bytes, path: Path, row: int) -> Tick:
    """Raises `DataError`, naming file and row, if the line is broken or lacks a field."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' row {row} is not JSON, {error}: download it again or exclude it") from error
    try:
        return _tick(record, row)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"has a field of another kind, {error}"
        raise DataError(f"'{path}' row {row} {what}: it is not a line of a VPT recording") from error


def _tick(record: dict[str, Any], row: int) -> Tick:
    mouse, keyboard = record["mouse"], record["keyboard"]
    turned = "pitch" in record and "yaw" in record
    hotbar = record.get("hotbar")
    if hotbar is not None and not (isinstance(hotbar, int) and 0 <= hotbar <= 8):
        raise ValueError(f"hotbar is {hotbar!r}, not 0 to 8")
    return Tick(
        row,
        tick=int(_number(record["tick"])),
        milli=_milli(record["milli"]),
        mouse=None if mouse is None else _mouse(mouse),
        keys=() if keyboard is None else _words(keyboard["keys"]),
        gui=_truth(record["isGuiOpen"]),
        hotbar=hotbar,
        pitch_yaw=(_number(record["pitch"]), _number(record["yaw"])) if turned else None,
        stats={name: int(_number(count)) for name, count in (record.get("stats") or {}).items()},
    )


def _mouse(mouse: dict[str, Any]) -> Mouse:
    scaled = "scaledX" in mouse and "scaledY" in mouse
    return Mouse(
        x=_number(mouse["x"]),
        y=_number(mouse["y"]),
        dx=_number(mouse["dx"]),
        dy=_number(mouse["dy"]),
        scaled=(_number(mouse["scaledX"]), _number(mouse["scaledY"])) if scaled else None,
        buttons=_buttons(mouse["buttons"]),
        new_buttons=_buttons(mouse.get("newButtons") or []),
    )


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise ValueError(f"{value!r:.40} is no number within {LARGEST:g}")
    return float(value)


def _milli(value: Any) -> float:
    """Milliseconds since 1970, so larger than any other number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"milli is {value!r:.40}")
    return float(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r:.40} is not true or false")
    return value


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ValueError(f"keys are {value!r:.40}")
    return tuple(value)


def _buttons(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(isinstance(button, int) for button in value):
        raise ValueError(f"buttons are {value!r:.40}")
    return tuple(value)
