"""Which of some processes are alive, without a race against their end."""

from collections.abc import Iterable
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
