"""Whether a process that left its name in a file is certainly gone, without asking it."""

import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

# Linux's monotonic clock stands still while a laptop sleeps, and leases run out meanwhile; this one goes on.
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def uptime() -> float:
    """Seconds on a clock that nobody sets and that counts sleep; the same for all processes of a machine."""
    return time.clock_gettime(CLOCK)


@dataclass(frozen=True)
class Process:
    """A process, told apart from a later one with the same number, on this machine and on others.

    `boot` and `namespace` say which kernel, since which start, and which of its containers count the processes;
    `started` is in the kernel's ticks. They are None where there is no /proc, as on macOS: nobody is surely dead then.
    """

    host: str  # for people; two machines may have the same name
    pid: int
    started: int | None
    boot: str | None
    namespace: str | None

    @classmethod
    def current(cls) -> Self:
        """This process."""
        boot = namespace = None
        with suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            namespace = os.readlink("/proc/self/ns/pid")
        return cls(socket.gethostname(), os.getpid(), _started(os.getpid()), boot, namespace)

    def here(self) -> bool:
        """Whether it was started on this machine since its boot, in this container: then its pid can be looked up."""
        mine, theirs = Process.current(), (self.boot, self.namespace)
        return None not in theirs and theirs == (mine.boot, mine.namespace)

    def certainly_dead(self) -> bool:
        """True if it is gone or a zombie; False if it lives, or if that can't be seen from here."""
        if self.started is None or not self.here():
            return False
        try:
            os.kill(self.pid, 0)  # signal 0 only asks; /proc may hide the processes of others
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        try:
            state, *_, started = _stat(self.pid)
        except OSError:  # hidden, or it ended this very moment
            return False
        return state in "ZX" or int(started) != self.started


def _started(pid: int) -> int | None:
    try:
        return int(_stat(pid)[-1])
    except OSError:
        return None


def _stat(pid: int) -> list[str]:
    """From the state to the start time in /proc/PID/stat; before them stands a name, with spaces and brackets in it."""
    return Path("/proc", str(pid), "stat").read_text(errors="replace").rpartition(")")[2].split()[:20]
