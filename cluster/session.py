"""The folder and the token of a Ray that this process starts."""

import fcntl
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from ray.exceptions import RayError

ROOT = Path("/tmp")  # whatever TMPDIR is: the paths of Ray's sockets may have 107 bytes
PREFIX = "dreamer4-"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for Ray's sockets, logs and spilled objects, removed at the end; logs stay if Ray itself failed."""
    _remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=ROOT))
    keep = False
    with open(folder / ".unlocked", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(folder / ".unlocked", folder / ".lock")
        try:
            yield folder
        except Exception as error:
            keep = isinstance(error, RayError) or isinstance(error.__cause__, RayError)
            raise
        finally:
            if keep:
                print(f"Ray's logs are in {folder}/*/session_latest/logs until the next start", file=sys.stderr)
            else:
                shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned() -> None:
    """Folders of sessions that were killed: nobody holds their lock any more."""
    for folder in ROOT.glob(f"{PREFIX}*"):
        try:
            with open(folder / ".lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use, somebody else's, or not a session
            continue


def write_token(folder: Path) -> Path:
    """A file with this process's token that only its owner can read."""
    path = folder / "token"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(_process_token())
    return path


@cache
def _process_token() -> str:
    """One for all sessions of a process, because Ray reads it once."""
    return secrets.token_hex(32)
