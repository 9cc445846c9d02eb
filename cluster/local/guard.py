"""`python guard.py PARENT COMMAND...` runs a command, and ends all that it started as soon as it, or the parent, ends.

A script of its own, without imports of ours, so that it is up at once and small. The kernel tells it of the parent's
death, however sudden, and hands it every orphan of its offspring, whatever session that is in: so nothing can escape,
and there is nothing to look for by name.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

SET_DEATH_SIGNAL, SET_CHILD_SUBREAPER = 1, 36  # of prctl(2)


class Ended(Exception):
    """We were told to end, or the parent did."""


def main(parent: int, command: list[str]) -> int:
    """The exit status of the command, or 143."""
    prctl: Callable[..., int] = ctypes.CDLL(None).prctl
    try:
        signal.signal(signal.SIGTERM, end)
        prctl(SET_DEATH_SIGNAL, signal.SIGTERM)
        prctl(SET_CHILD_SUBREAPER, 1)
        if os.getppid() != parent:  # it ended before we asked
            return 143
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            prctl(SET_DEATH_SIGNAL, signal.SIGKILL)  # of us: if somebody kills the guard, at least the command ends
            os.execvp(command[0], command)
        while True:
            pid, status = os.wait()
            if pid == child:
                return os.waitstatus_to_exitcode(status) & 0xFF
    except Ended:
        return 143
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        kill_offspring()


def end(number: int, frame: FrameType | None) -> None:
    raise Ended


def kill_offspring() -> None:
    """Returns when there is none, alive or dead."""
    while True:
        for pid in offspring(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def offspring(pid: int) -> set[int]:
    """All descendants of a process."""
    parents = dict(_parents())
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def _parents():
    """(process, its parent), of all processes."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", errors="replace") as file:
                    yield int(entry), int(file.read().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue


if __name__ == "__main__":
    try:
        sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
    except OSError as error:
        sys.exit(f"can't run '{sys.argv[2]}': {error}")
