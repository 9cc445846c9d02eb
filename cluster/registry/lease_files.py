"""The folder `.lease` of a run: who writes it, and the fence, a number that only grows.

```
lock          held while one of the others is changed        facts.json   what the writer tells (directory registry)
fence.json    the largest token that was ever given out      elsewhere    the Redis that keeps the lease, while it does
lease.json    the last lease: holder, token, end, process
```
The fence stands in two files, so that one may be damaged. It is raised in `fence.json` first: a process that is killed
in between has used up a number that nobody ever got.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.registry.liveness import Process, uptime
from dreamer4.errors import RunError
from dreamer4.files import read_json, write_atomic, write_json

PATIENCE = 10.0  # seconds to wait for the lock, which is held for milliseconds


@dataclass(frozen=True)
class Entry:
    """The content of lease.json. `holder` is None once the lease has been given back."""

    holder: str | None
    token: int
    since: float  # seconds since 1970
    expires: float  # seconds since 1970
    expires_uptime: float  # on the clock of `process`'s machine, which nobody sets
    process: Process

    def alive(self) -> bool:
        """Whether the holder may still write: his time has not passed, and his process isn't known to be dead.

        Between machines that share a disk this compares their clocks; the fence makes a wrong guess harmless.
        """
        if self.holder is None or self.process.certainly_dead():
            return False
        return uptime() < self.expires_uptime if self.process.here() else time.time() < self.expires


class LeaseFiles:
    """Reads and changes the folder. What changes it has to be called within `locked`."""

    def __init__(self, run: str):
        self.run, self.folder = run, Path(run) / ".lease"
        self.lease_path, self.fence_path = self.folder / "lease.json", self.folder / "fence.json"
        self.facts_path, self.elsewhere_path = self.folder / "facts.json", self.folder / "elsewhere"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps others out. The kernel takes the lock back from a killed process, but not from a stopped one.

        Raises:
            RunError: the run directory is missing (a disk that isn't mounted must not look like a free run), can't be
                written, or a stopped process has the lock.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            file = open(self.folder / "lock", "a")  # noqa: SIM115 - closed below, apart from the errors of the body
        except OSError as error:
            raise RunError(f"can't use '{self.folder}': {error.strerror or error}") from error
        with file:
            self._wait_for(file)
            yield

    def _wait_for(self, file: Any) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RunError(
                        f"'{self.folder / 'lock'}' was held for {PATIENCE:g} s: continue or end the stopped process "
                        "that holds it (`lsof` names it)"
                    ) from None
                time.sleep(0.005)
            except OSError as error:
                raise RunError(f"can't lock '{self.folder / 'lock'}': {error.strerror or error}") from error

    def newest(self) -> int:
        """The largest token that anybody got, 0 if nobody did. Needs no lock.

        Raises:
            RunError: both files are damaged, or one is and the other missing.
        """
        try:
            return _token(self.fence_path) or self.entry_token()
        except RunError as damaged:
            if token := self.entry_token():
                return token
            raise damaged

    def entry_token(self) -> int:
        entry = self.entry()
        return 0 if entry is None else entry.token

    def entry(self) -> Entry | None:
        """The last lease; None if there was none. Needs no lock.

        Raises:
            RunError: the file is damaged.
        """
        if not self.lease_path.exists():
            return None
        try:
            read = read_json(self.lease_path)
            entry = Entry(**{**read, "process": Process(**read["process"])})
            _check_numbers(entry)
        except (RunError, TypeError, KeyError) as error:
            raise RunError(
                f"'{self.lease_path}' is damaged: make sure that nobody writes the run, then remove that file"
            ) from error
        return entry

    def raise_fence(self, token: int) -> None:
        write_json(self.fence_path, {"token": token})

    def write(self, holder: str | None, token: int, ttl: float, since: float | None = None) -> None:
        """Notes this process as that of the holder."""
        now = time.time()
        entry = Entry(holder, token, now if since is None else since, now + ttl, uptime() + ttl, Process.current())
        write_json(self.lease_path, asdict(entry))

    def elsewhere(self) -> str | None:
        """The service that keeps the lease, while one does. Needs no lock."""
        try:
            return self.elsewhere_path.read_text()
        except FileNotFoundError:
            return None

    def set_elsewhere(self, name: str | None) -> None:
        if name is None:
            self.elsewhere_path.unlink(missing_ok=True)
        else:
            write_atomic(self.elsewhere_path, name.encode())


def _token(path: Path) -> int:
    """The token of a fence file, 0 where there is none."""
    if not path.exists():
        return 0
    read = read_json(path)
    token = read.get("token") if isinstance(read, dict) else None
    if not isinstance(token, int):
        raise RunError(f"'{path}' is damaged: write {{\"token\": N}} there, N larger than any token given out before")
    return token


def _check_numbers(entry: Entry) -> None:
    for number in (entry.token, entry.since, entry.expires, entry.expires_uptime, entry.process.pid):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise TypeError(f"{number!r} is not a number")
