"""Files that run code when they are unpickled, and whether that has happened."""

import os
import pickle
from pathlib import Path


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def bomb(mark: Path) -> bytes:
    return pickle.dumps({"weights": Bomb(mark)}, protocol=2)  # the one that torch writes


def exploded(mark: Path) -> bool:
    """Whether code has run; makes it unhappened."""
    there = mark.exists()
    if there:
        mark.rmdir()
    return there
