"""Classes that fail in every way an actor can; in a module of their own, because other processes import them."""

import os
import signal
from pathlib import Path

from dreamer4.errors import CheckpointError, DataError


class Adder:
    """Nothing wrong with this one, but for those of its methods that say so."""

    def __init__(self, start: int):
        self.total = start

    def add(self, number: int) -> int:
        self.total += number
        return self.total

    def threads(self) -> tuple[str, int]:
        import torch

        return os.environ["OMP_NUM_THREADS"], torch.get_num_threads()

    def mistake(self) -> None:
        raise DataError("shard 3 is cut short: copy it again")

    def bug(self) -> None:
        raise ZeroDivisionError("a bug")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def die_once(self, flag: Path) -> str:
        """Answers if the flag is there, else leaves it and dies."""
        if not flag.exists():
            flag.touch()
            self.die()
        return "alive"


class Refuses:
    def __init__(self) -> None:
        raise CheckpointError("checkpoint 7 belongs to another config:\nseed is 0 there and 1 here")

    def work(self) -> None: ...


class Crashes:
    def __init__(self) -> None:
        raise KeyError("a bug in a constructor")

    def work(self) -> None: ...


class Mortal:
    """Makes shards, and dies at the first tries of one of them; notes in a file per shard which processes tried."""

    def __init__(self, folder: Path, fatal: int, deaths: int):
        self.folder, self.fatal, self.deaths = folder, fatal, deaths

    def make(self, index: int) -> float:
        with open(self.folder / str(index), "a+") as file:
            file.write(f"{os.getpid()}\n")
            file.seek(0)
            tries = len(file.readlines())
        if index == self.fatal and tries <= self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.5
