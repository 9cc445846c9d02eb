"""A real run on a real cluster of several nodes, and a hand that kills parts of it at chosen updates.

Shared by the chaos benchmark and by the tests of failures. A kill counts only if the ledger shows that the run was
under way when it came and went on afterwards.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.config import configure
from cluster.local.cluster import LocalCluster
from cluster.local.guard import offspring
from cluster.policy.ledger import read_ledger
from cluster.presets import preset
from cluster.run import Run
from cluster.runtime import ray_session
from cluster.stages import run_stage

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ("collect", "tokenizer", "encode", "dynamics", "agent")
ACTORS = {"worker": "ray::RolloutRank", "learner": "ray::PolicyTrainer", "coordinator": "ray::Coordinator"}
KINDS = ("worker", "learner", "coordinator", "node", "head", "client")
CPUS = 3  # of a node; three of them have room for a learner and three workers even while one is away
UNREACHABLE = "can't reach the Ray cluster"
HEAD_AWAY = 2.0  # seconds between the death of a head and the start of the next


def prepare(path: Path, settings: Sequence[str]) -> None:
    """A smoke-sized run that is ready for stage 4, made by the ordinary stages on a Ray of its own."""
    with Run.open(path, configure(preset("smoke"), settings)) as run, ray_session(run.config):
        for stage in TRAINING:
            run_stage(stage, run)


def copy_of(prepared: Path, path: Path) -> Path:
    """The same run once more; what a run is doesn't depend on where it lies."""
    return Path(shutil.copytree(prepared, path, ignore=shutil.ignore_patterns(".lock", ".lease")))


@dataclass(frozen=True)
class Kill:
    """What was killed, and what the run had done by then."""

    kind: str
    updates: int
    seconds: float  # until the next update was applied
    redone: int  # updates that were done once more


def processes(cluster: LocalCluster, kind: str) -> list[psutil.Process]:
    """Of the actors of a kind, on all nodes of a cluster."""
    trees = [node.process.pid for node in [*cluster.nodes, *([cluster.head] if cluster.head else [])]]
    found = []
    for pid in {pid for tree in trees for pid in offspring(tree)}:
        try:
            process = psutil.Process(pid)
            if any(word.startswith(ACTORS[kind]) for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


class Drill:
    """One run of stage 4 on a cluster.

    Args:
        settings: of this start, such as the number of workers.
        seed: of the choice among equal victims.
    """

    def __init__(self, cluster: LocalCluster, run: Path, settings: Sequence[str] = (), seed: int = 0):
        self.cluster, self.run, self.settings = cluster, run, list(settings)
        self.draw = random.Random(seed)
        self.log = run.parent / f"{run.name}.log"
        self.client = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """The command that a user types; again after its client was killed."""
        command = [sys.executable, "-m", "cluster.main", "train", "policy", "--run", str(self.run), *self.settings]
        with open(self.log, "wb") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=self.cluster.env(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def updates(self) -> int:
        """How many are applied; less after a learner has come back from its checkpoint."""
        updates = 0
        for event in read_ledger(self.run, "policy"):
            if event["event"] == "applied":
                updates = event["step"] + 1
            elif event["event"] in ("rewind", "start"):
                updates = event["updates"]
        return updates

    def applied(self) -> int:
        """Updates that were applied in all, those done again included."""
        return sum(event["event"] == "applied" for event in read_ledger(self.run, "policy"))

    def wait(self, reached: Callable[[], bool], timeout: float = 240) -> None:
        """Raises `RuntimeError` with the end of the client's log if that doesn't come about."""
        deadline = time.monotonic() + timeout
        while not reached():
            ended = self.client.poll()
            if ended == 2 and UNREACHABLE in self.tail():  # it began while the head was away: type it again
                self.client = self.start()
            elif ended is not None and not reached():
                raise RuntimeError(f"the client ended with status {ended}: {self.tail()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"nothing for {timeout:g} s after {self.updates()} updates: {self.tail()}")
            time.sleep(0.05)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-1500:]

    def kill(self, kind: str, steps: int) -> Kill:
        """Kills one thing of a kind and waits until the run goes on.

        Raises:
            RuntimeError: it doesn't go on, or had ended before.
        """
        updates, applied, events = self.updates(), self.applied(), len(read_ledger(self.run, "policy"))
        if updates >= steps:
            raise RuntimeError(f"the run was done before '{kind}' was killed: give it more updates")
        begin = time.monotonic()
        getattr(self, f"_kill_{kind}", lambda: self._kill_actor(kind))()
        # Two updates: the first may have been in the learner's hands when the kill came.
        self.wait(lambda: self.applied() >= applied + 2 or self.updates() >= steps)
        seconds = time.monotonic() - begin
        since = read_ledger(self.run, "policy")[events:]
        back = [event["updates"] for event in since if event["event"] in ("rewind", "start")]
        return Kill(kind, updates, round(seconds, 2), max([0, *(updates - update for update in back)]))

    def _kill_actor(self, kind: str) -> None:
        self.wait(lambda: bool(processes(self.cluster, kind)))
        self.draw.choice(processes(self.cluster, kind)).send_signal(signal.SIGKILL)

    def _kill_node(self) -> None:
        self.cluster.kill_node(self.draw.choice(self.cluster.nodes))
        self.cluster.add_node(CPUS, wait=False)

    def _kill_head(self) -> None:
        self.cluster.kill_head()
        time.sleep(HEAD_AWAY)
        self.cluster.start_head()

    def _kill_client(self) -> None:
        self.client.send_signal(signal.SIGKILL)
        self.client.wait()
        self.client = self.start()

    def finish(self, timeout: float = 600) -> None:
        """Waits for the end; raises `RuntimeError` if it isn't a good one."""
        self.wait(lambda: self.client.poll() == 0, timeout)

    def close(self) -> None:
        if self.client.poll() is None:
            os.kill(self.client.pid, signal.SIGKILL)
            self.client.wait()
