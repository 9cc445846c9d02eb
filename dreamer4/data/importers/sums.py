"""`SHA256SUMS` beside recordings: films, lines of JSON and Parquet can't tell by themselves that a bit is wrong."""

import hashlib
import os
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

from dreamer4.errors import DataError

NAME = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")  # as `sha256sum` writes them


class SourceSums:
    """What the files of recordings were where they were made, if somebody has written it down there.

    Args:
        root: of the recordings; the sums lie in it, or beside it where it is a file.

    Raises:
        DataError: the sums can't be read.
    """

    def __init__(self, root: Path):
        self.path = (root if root.is_dir() else root.parent) / NAME
        self.wanted = read_sums(self.path) if self.path.exists() else None
        self._found: dict[Path, str] = {}

    def verify(self, paths: Iterable[Path]) -> None:
        """Reads files to their ends, each once, however many sources share it.

        Raises:
            DataError: one of them has other bytes than it had, isn't in the sums, or can't be read.
        """
        if self.wanted is None:
            return
        for path in paths:
            name = Path(os.path.relpath(path, self.path.parent)).as_posix()
            if name not in self.wanted:
                raise DataError(f"'{path}' is not in '{self.path}': add its sum where it was made, or delete the sums")
            found = self._found[path] = self._found.get(path) or digest_of(path)
            if found != self.wanted[name]:
                raise DataError(
                    f"'{path}' has other bytes than '{self.path}' says (sha256 {found[:12]}..., not "
                    f"{self.wanted[name][:12]}...): get it again"
                )


def digest_of(path: Path) -> str:
    """SHA-256 of a file. Raises `DataError` if it can't be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"'{path}' can't be read: {error}") from error


def read_sums(path: Path) -> dict[str, str]:
    """Checksums by names relative to the folder. Raises `DataError` if a line is no checksum, or there is none."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' can't be read: {error}") from error
    sums = {}
    for number, line in enumerate(lines, 1):
        match = LINE.fullmatch(line)
        if match is None:
            raise DataError(f"'{path}' line {number} is no line of sha256sum: {line[:80]!r}")
        sums[posixpath.normpath(match[2])] = match[1]
    if not sums:
        raise DataError(f"'{path}' is empty: make it with `sha256sum`, or delete it")
    return sums
