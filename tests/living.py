"""Which of some processes are alive, and waiting for what is about to happen."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil


def alive(pids: Iterable[int]) -> set[int]:
    """Those that exist and are no zombies."""
    found = set()
    for pid in pids:
        with suppress(psutil.NoSuchProcess):  # it may end between two looks
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.add(pid)
    return found


def eventually(true: Callable[[], bool], seconds: float = 90, pause: float = 0.01) -> bool:
    """Whether that comes true in time; asked with so many seconds between."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True
