"""Seeded damages of files for `benchmarks.fuzz_data`."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Draw = np.random.Generator
NUMBERS = (0, -1, 1, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 10**30, -(2**63), 0.5, 1e308, float("nan"))
VALUES: tuple[Any, ...] = (*NUMBERS, None, True, "", "x" * 70, "../../etc/passwd", "/etc/passwd", "\x00", [], {}, [[]])


def flip(data: bytes, draw: Draw) -> bytes:
    changed = np.frombuffer(data, np.uint8).copy()
    places = draw.integers(len(data), size=int(draw.integers(1, 9)))
    changed[places] ^= (1 << draw.integers(8, size=len(places))).astype(np.uint8)
    return changed.tobytes()


def truncate(data: bytes, draw: Draw) -> bytes:
    return data[: int(draw.integers(len(data)))]


def hole(data: bytes, draw: Draw) -> bytes:
    at, size = int(draw.integers(len(data))), int(draw.integers(1, 4096))
    return data[:at] + data[at + size :]


def zeros(data: bytes, draw: Draw) -> bytes:
    at, size = int(draw.integers(len(data))), int(draw.integers(1, 4096))
    return data[:at] + bytes(min(size, len(data) - at)) + data[at + size :]


def insert(data: bytes, draw: Draw) -> bytes:
    at = int(draw.integers(len(data)))
    return data[:at] + draw.bytes(int(draw.integers(1, 256))) + data[at:]


def integer(data: bytes, draw: Draw) -> bytes:
    """An aligned integer becomes another one: sizes and counts in binary headers."""
    width = int(draw.choice([2, 4, 8]))
    at = int(draw.integers(max(1, len(data) // width))) * width
    value = int(draw.choice([0, 1, 2**15, 2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1])) % (1 << (8 * width))
    order = "little" if draw.integers(2) else "big"
    return (data[:at] + value.to_bytes(width, order) + data[at + width :])[: max(len(data), at + width)]


def digits(data: bytes, draw: Draw) -> bytes:
    """A number in a text becomes huge."""
    return data.replace(str(draw.integers(10)).encode(), b"999999999999", int(draw.integers(1, 3)))


def value(data: bytes, draw: Draw) -> bytes:
    """One value in JSON, or in one line of it, becomes something else; other files have a few bytes changed."""
    lines = data.split(b"\n")
    texts = [number for number, line in enumerate(lines) if line.startswith(b"{")]
    try:
        if data.lstrip().startswith(b"{") and len(texts) < 2:
            return json.dumps(_changed(json.loads(data), draw)).encode()
        number = texts[int(draw.integers(len(texts)))]
        lines[number] = json.dumps(_changed(json.loads(lines[number]), draw)).encode()
        return b"\n".join(lines)
    except (ValueError, IndexError):
        return flip(data, draw)


def _changed(record: Any, draw: Draw) -> Any:
    """A JSON value with one part of it replaced, removed or moved."""
    children = list(record.items()) if isinstance(record, dict) else list(enumerate(record))
    if not children:
        return VALUES[int(draw.integers(len(VALUES)))]
    key, child = children[int(draw.integers(len(children)))]
    kind = int(draw.integers(8))
    if isinstance(child, dict | list) and child and kind < 6:
        record[key] = _changed(child, draw)
    elif kind == 6:
        del record[key]
    elif kind == 7:
        record[key] = children[int(draw.integers(len(children)))][1]
    else:
        record[key] = VALUES[int(draw.integers(len(VALUES)))]
    return record


def empty(data: bytes, draw: Draw) -> bytes:
    return b""


def swap(data: bytes, draw: Draw) -> bytes:
    """Handled by `damage`: two files take each other's place."""
    return data


DAMAGES: dict[str, Callable[[bytes, Draw], bytes]] = {
    function.__name__: function
    for function in (flip, truncate, hole, zeros, insert, integer, digits, value, empty, swap)
}


def damage(folder: Path, fit: Callable[[Path, Path], bool] | None, draw: Draw, kind: str) -> str:
    """Damages one file in the folder; says how. Half of the time checksums that a dataset keeps are made to fit."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    victim = files[int(draw.integers(len(files)))]
    name = str(victim.relative_to(folder))
    if kind == "swap":
        other = files[int(draw.integers(len(files)))]
        mine, theirs = victim.read_bytes(), other.read_bytes()
        victim.write_bytes(theirs)
        other.write_bytes(mine)
        return f"swap of {name} and {other.relative_to(folder)}"
    victim.write_bytes(DAMAGES[kind](victim.read_bytes(), draw) if victim.stat().st_size else b"?")
    fitted = bool(draw.integers(2)) and fit is not None and fit(folder, victim)
    return f"{kind} of {name}{', checksums made to fit' if fitted else ''}"


def fit_manifest(folder: Path, victim: Path) -> bool:
    """Makes the manifest say what a changed file is: a hostile dataset, where checksums prove nothing."""
    path = folder / "manifest.json"
    if victim == path:
        return False
    manifest, content = json.loads(path.read_bytes()), victim.read_bytes()
    for shard in manifest["shards"]:
        for key, prefix in (("file", ""), ("index", "index_")):
            if shard.get(key) == victim.name:
                shard[f"{prefix}bytes"], shard[f"{prefix}crc32"] = len(content), zlib.crc32(content)
    path.write_text(json.dumps(manifest))
    return True
