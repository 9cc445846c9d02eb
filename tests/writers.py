"""Processes that want to write a run, for the tests of leases; in a module of their own, because they import it."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, TypeVar

from cluster.registry.registry import Lease, open_registry
from dreamer4.errors import RunError

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60.0  # seconds; only a failing test waits that long
Result = TypeVar("Result")


def eventually(act: Callable[[], Result]) -> Result:
    """What `act` gives as soon as it raises no `RunError` and gives something."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if result := act():
                return result
            reason = None
        except RunError as error:
            reason = error
        assert time.monotonic() < deadline, f"waited for {PATIENCE} s: {reason}"
        time.sleep(0.02)


def contend(run: str, name: str, rounds: int, gate: Barrier, results: "Queue[Any]", careless: bool) -> None:
    """In every round, acquires at the same moment as the others, tells its token (0: refused), and releases."""
    registry = Careless(run, gate) if careless else open_registry(run)
    for number in range(rounds):
        gate.wait(PATIENCE)
        try:
            lease = registry.acquire(name, 3600)
        except RunError:
            lease = None
        results.put((number, name, lease.token if lease else 0))
        gate.wait(PATIENCE)
        if lease is not None:
            registry.release(lease)


class Careless:
    """A registry that looks and then takes, as two steps. The gate between them makes sure that both have looked."""

    def __init__(self, run: str, gate: Barrier):
        self.path, self.run, self.gate = Path(run) / "holder", run, gate

    def acquire(self, holder: str, ttl: float) -> Lease:
        taken = self.path.exists()
        self.gate.wait(PATIENCE)
        if taken:
            raise RunError("taken")
        self.path.write_text(holder)
        return Lease(self.run, holder, 1)

    def release(self, lease: Lease) -> None:
        self.path.unlink(missing_ok=True)


# Does what it is told, line by line, and answers each with one line: "ok", or the error.
SCRIPT = """
import sys
from cluster.registry.lease import LeaseKeeper
from cluster.registry.registry import open_registry

registry, holder, ttl = open_registry(sys.argv[1]), sys.argv[2], float(sys.argv[3])
kept = None
for line in sys.stdin:
    word, *rest = line.split()
    try:
        if word == "acquire":
            lease = registry.acquire(holder, ttl)
        elif word == "keep":
            kept = LeaseKeeper(sys.argv[1], holder, ttl).__enter__()
        elif word == "check":
            kept.check() if kept else registry.check(lease)
        elif word == "publish":
            kept.publish(step=int(rest[0])) if kept else registry.publish(lease, step=int(rest[0]))
        elif word == "renew":
            registry.renew(lease, ttl)
        print("ok", flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


class Writer:
    """Another process that writes a run as it is told. `with` ends it, stopped or not."""

    def __init__(self, run: Path, holder: str, ttl: float):
        command = [sys.executable, "-c", SCRIPT, str(run), holder, str(ttl)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        self.tell(line)
        return self.answer()

    def stop(self, run: Path) -> None:
        """Stops it where it doesn't hold the lock of the files: nobody could take over from there."""
        with open(run / ".lease" / "lock") as file:
            while True:
                self.signal(signal.SIGSTOP)
                os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)
                try:
                    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self.signal(signal.SIGCONT)
                    time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
