"""Stage 4 over several hosts: `python -m benchmarks.hosts [--json FILE]`, as root.

Three hosts (network namespaces with their own addresses, `benchmarks.network`). The first has Redis and the head, both
behind secrets; the others work. In mid-run the cable of the host with the coordinator is pulled and put back later, and
all processes of the host with the learner are killed. In the end the ledger must show that both hit in mid-run and that
every promise of the loop was kept, and the policy must have the same bits as that of an undisturbed run.
"""

import argparse
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.chaos import same_policy
from benchmarks.drill import CPUS, Drill, Kill, copy_of, prepare, processes
from benchmarks.network import Network
from cluster.local.cluster import LocalNode
from cluster.local.guard import offspring
from cluster.local.processes import kill, launch
from cluster.local.ray_start import STARTED, Machine, environment, head_command, node_command
from cluster.policy.ledger import broken_promises, read_ledger
from cluster.session import temporary_folder, write_token
from dreamer4.errors import RunError
from dreamer4.files import write_json

GCS_PORT, REDIS_PORT = 6379, 6380
STEPS, SAVE_EVERY = 120, 5
PATIENT = {"RAY_health_check_failure_threshold": "5", "RAY_health_check_timeout_ms": "4000"}  # many hosts, one machine
APART = 5  # updates that the others do before a host is back


class Hosts:
    """A Ray with a token over several hosts, for the length of a `with` block: head and Redis on host 1.

    Raises:
        RunError: there can't be any (`Network`), or one doesn't come up.
    """

    def __init__(self, count: int = 3, cpus: int = CPUS, start_timeout: float = 120):
        self.cpus, self.start_timeout = cpus, start_timeout
        self.head: LocalNode | None = None
        self.on: dict[int, LocalNode] = {}  # what runs on hosts 2, 3, ...
        self._closing = ExitStack()
        try:
            self.network = self._closing.enter_context(Network(count))
            self.folder = self._closing.enter_context(temporary_folder())
            self._closing.callback(self._kill_all)
            self._password = secrets.token_hex(16)
            self._start_redis()
            registry = f"redis://:{self._password}@{self.network.address(1)}:{REDIS_PORT}/0"
            self._env = environment(write_token(self.folder), (), {**PATIENT, "DREAMER4_REGISTRY": registry})
            self.address = f"{self.network.address(1)}:{GCS_PORT}"
            self.start_head()
            for host in range(2, count + 1):
                self.start(host, wait=False)
            for node in self.nodes:
                self.wait(node)
        except BaseException:
            self.close()
            raise

    @property
    def nodes(self) -> list[LocalNode]:
        return list(self.on.values())

    def env(self) -> dict[str, str]:
        """Of a driver, which has to run on a host."""
        return {**self._env, "RAY_ADDRESS": self.address}

    def start_head(self) -> None:
        store = {
            "RAY_REDIS_ADDRESS": f"{self.network.address(1)}:{REDIS_PORT}",
            "RAY_external_storage_namespace": "drill",
        }
        secret = ["--redis-username=default", f"--redis-password={self._password}"]
        command = [*head_command(self.folder / "1", GCS_PORT, 8265, 10001, 150), *secret, "--include-dashboard=false"]
        self.head = self._launch(1, command, store)
        self.wait(self.head)

    def start(self, host: int, wait: bool = True) -> None:
        """`ray start` on a host where it doesn't run."""
        command = node_command(self.folder / str(host), self.address, Machine(self.cpus))
        self.on[host] = self._launch(host, command, {})
        if wait:
            self.wait(self.on[host])

    def wait(self, node: LocalNode) -> None:
        """Raises `RunError` with the end of its log if a node doesn't join."""
        deadline = time.monotonic() + self.start_timeout
        while STARTED not in (output := node.log.read_text(errors="replace")):
            if not node.alive or time.monotonic() > deadline:
                raise RunError(f"host {node.name} did not start: {' | '.join(output.splitlines()[-5:])}")
            time.sleep(0.1)

    def kill(self, host: int) -> None:
        """SIGKILL for all that runs on a host, as if it had lost power."""
        kill([self.on.pop(host).process])

    def host_of(self, kind: str) -> int | None:
        """Where the actor of a kind is; None if it is nowhere at the moment."""
        pids = {process.pid for process in processes(self, kind)}
        return next((host for host, node in self.on.items() if pids & offspring(node.process.pid)), None)

    def close(self) -> None:
        """Ends everything. May be called again."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _launch(self, host: int, command: Sequence[str], env: dict[str, str]) -> LocalNode:
        log = self.folder / f"{host}.log"
        log.unlink(missing_ok=True)
        node_id = secrets.token_hex(28)
        there = [*self.network.inside(host), *command, f"--node-ip-address={self.network.address(host)}"]
        whole = {**self._env, **env, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": node_id}
        return LocalNode(str(host), node_id, launch(there, whole, log), log)

    def _start_redis(self) -> None:
        home, log = self.folder / "redis", self.folder / "redis.log"
        home.mkdir(mode=0o700)
        lines = [f"bind {self.network.address(1)}", f"port {REDIS_PORT}", f"requirepass {self._password}"]
        (home / "redis.conf").write_text("\n".join([*lines, f"dir {home}", "appendonly yes", 'save ""', ""]))
        command = [*self.network.inside(1), "redis-server", str(home / "redis.conf")]
        self._redis = launch(command, {"PATH": "/usr/bin:/usr/sbin:/bin:/sbin"}, log)
        self._closing.callback(kill, [self._redis])
        deadline = time.monotonic() + 30
        while "Ready to accept connections" not in log.read_text():
            if self._redis.poll() is not None or time.monotonic() > deadline:
                raise RunError(f"Redis did not start on host 1: {log.read_text().strip().splitlines()[-1:]}")
            time.sleep(0.05)

    def _kill_all(self) -> None:
        kill([node.process for node in [*self.nodes, *([self.head] if self.head else [])]])
        self.on, self.head = {}, None


class HostDrill(Drill):
    """A run of stage 4 whose client is on host 1, and a hand that pulls cables and plugs.

    `kill("cable", ...)` and `kill("host", ...)` hit the host with the coordinator, and the one with the learner.
    """

    cluster: Hosts

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "cluster.main", "train", "policy", "--run", str(self.run), *self.settings]
        with open(self.log, "wb") as log:
            return subprocess.Popen(
                [*self.cluster.network.inside(1), *command],
                env=self.cluster.env(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _kill_cable(self) -> None:
        self.victim = self._host_of("coordinator")
        self.cluster.network.cut(self.victim)

    def _kill_host(self) -> None:
        self.victim = self._host_of("learner")
        self.cluster.kill(self.victim)

    def _host_of(self, kind: str) -> int:
        self.wait(lambda: self.cluster.host_of(kind) is not None)
        host = self.cluster.host_of(kind)
        assert host is not None
        return host

    def advance(self, updates: int) -> None:
        """Waits until so many more are applied."""
        target = self.applied() + updates
        self.wait(lambda: self.applied() >= target)

    def bring_back(self) -> None:
        """A host that had its cable pulled gets it back: the head has given it up, so its Ray ends. Then that is
        started, and again if it fails, as systemd would on both."""
        if self.victim in self.cluster.on:
            self.cluster.network.restore(self.victim)
            self.wait(lambda: not self.cluster.on[self.victim].alive)
        for last in (False, False, True):
            try:
                self.cluster.start(self.victim)
                return
            except RunError:
                if last:
                    raise
                self.cluster.kill(self.victim)


def settings(steps: int) -> list[str]:
    """Of the run."""
    often = [f"policy.steps={steps}", f"policy.save_every={SAVE_EVERY}"]
    return [*often, "policy.rollouts_per_step=2", "policy.max_staleness=1"]


def disturb(hosts: Hosts, run: Path, steps: int) -> list[Kill]:
    """The whole drill on a prepared run.

    Raises:
        RuntimeError: the run ends early, or doesn't go on.
    """
    drill, kills = HostDrill(hosts, run, ["resources.workers=2"]), []
    try:
        drill.advance(10)
        for kind in ("cable", "host"):
            kills.append(drill.kill(kind, steps))
            drill.advance(APART)
            drill.bring_back()
            drill.advance(APART)
        drill.finish()
    finally:
        drill.close()
    return kills


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="updates; too few, and the run ends before the faults")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # by way of all that is to be removed
    with tempfile.TemporaryDirectory(prefix="hosts-") as folder:
        prepared, undisturbed, disturbed = (Path(folder) / name for name in ("prepared", "undisturbed", "disturbed"))
        prepare(prepared, settings(options.steps))
        with Hosts() as hosts:
            HostDrill(hosts, copy_of(prepared, undisturbed), ["resources.workers=2"]).finish()
            kills = disturb(hosts, copy_of(prepared, disturbed), options.steps)
        events = read_ledger(disturbed, "policy")
        equal = same_policy(undisturbed, disturbed)
    broken = broken_promises(events, options.steps, SAVE_EVERY)
    record = {
        "kills": [vars(kill) for kill in kills],
        "steps": options.steps,
        "coordinators": [event["token"] for event in events if event["event"] == "coordinator"],
        "updates_redone": sum(event["event"] == "applied" for event in events) - options.steps,
        "broken_promises": broken,
        "final_state_equal": equal,
    }
    for name, value in record.items():
        print(f"{name:18} {value}")
    if options.json:
        write_json(options.json, record)
    return 0 if equal and not broken and all(0 < kill.updates < options.steps for kill in kills) else 1


if __name__ == "__main__":
    sys.exit(main())
