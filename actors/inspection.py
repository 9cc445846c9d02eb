"""What an inspection found, on disk: `inspection.json` for reading, `arrays.npz` for what is an array."""

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreamer4.errors import RunError
from dreamer4.files import read_json, replacing, write_json

ARRAY = "$array"  # in the JSON: the name of an array in the other file


def save_inspection(path: Path, found: Mapping[str, Any]) -> None:
    """Writes nested dicts of numbers, texts and numpy arrays into a folder; numbers that aren't finite become null.

    Raises:
        RunError: the folder can't be written.
    """
    path = Path(path)
    with replacing(path / "arrays.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **dict(_arrays(found)))  # pyright: ignore[reportArgumentType]
    write_json(path / "inspection.json", _plain(found))


def load_inspection(path: Path) -> dict[str, Any]:
    """The nested dicts that were saved.

    Raises:
        RunError: a file is missing or damaged.
    """
    found, file = read_json(Path(path) / "inspection.json"), Path(path) / "arrays.npz"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return _filled(found, arrays)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise RunError(f"can't read '{file}': {error}; run the inspection again") from error


def _arrays(found: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _arrays(value, f"{place}{name}/")
        elif isinstance(value, np.ndarray):
            yield f"{place}{name}", value


def _plain(found: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, Mapping):
            plain[name] = _plain(value, f"{place}{name}/")
        elif isinstance(value, np.ndarray):
            plain[name] = {ARRAY: f"{place}{name}"}
            if value.ndim == 1:  # for the reader
                plain[name]["values"] = [_number(number) for number in value.tolist()]
        else:
            plain[name] = _number(value)
    return plain


def _number(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _filled(found: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if not isinstance(found, dict):
        return found
    if ARRAY in found:
        return arrays[found[ARRAY]]
    return {name: _filled(value, arrays) for name, value in found.items()}
