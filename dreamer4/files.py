"""Files that are whole or absent: written under a temporary name, flushed to the disk, then renamed."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dreamer4.errors import RunError


def flush(path: Path) -> None:
    """Waits until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name next to `path`; what was written there takes the place of `path` at the end, or vanishes.

    Raises:
        RunError: the file can't be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        raise RunError(f"can't write '{path}': {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_atomic(path: Path, data: bytes) -> None:
    """Writes or replaces a file; a reader sees the former content or the new one, never a part. Makes the folder.

    Raises:
        RunError: the file can't be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, obj: Any) -> None:
    """`write_atomic` of an object as indented JSON; keys keep their order."""
    write_atomic(path, (json.dumps(obj, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Raises `RunError` naming the file if it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise RunError(f"can't read '{path}': {error.strerror or error}") from error
    except ValueError as error:
        raise RunError(f"'{path}' is not JSON: {error}") from error


def append_line(path: Path, text: str) -> None:
    """Adds one line to a log. If a killed writer left half a line, the new line still starts on its own.

    Raises:
        RunError: the file can't be written.
    """
    try:
        with open(path, "ab+") as file:
            torn = file.tell() > 0 and _last_byte(file) != b"\n"
            file.write((b"\n" if torn else b"") + text.encode() + b"\n")
    except OSError as error:
        raise RunError(f"can't write '{path}': {error.strerror or error}") from error


def read_events(path: Path, stage: str | None = None) -> list[dict[str, Any]]:
    """The JSON objects of a log, in order, of one stage or of all; what a killed writer left half is skipped."""
    events = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        with suppress(ValueError):  # the end of the file, or half a line
            events.append(json.loads(line))
    return [event for event in events if stage is None or event["stage"] == stage]


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def ensure_writable(folder: Path) -> None:
    """Makes the folder and tries to write there, so that a run fails in its first second and not at its first save.

    Raises:
        RunError: the folder can't be made or written.
    """
    probe = Path(folder) / f".probe.{secrets.token_hex(4)}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunError(f"can't write to folder '{folder}': {error.strerror or error}") from error
