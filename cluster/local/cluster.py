"""A real Ray cluster of several nodes on one machine, out of `ray start --block` processes: for drills, not for work.

Nodes are added, killed, and told that they will be; the head is killed and comes back with its memory. All of it lies
in one short folder of /tmp and wants a token. Whatever becomes of the process that made it, no other one is left over;
where it was killed itself the folder is, until the next start.

Ray binds to loopback only where a machine has no other address; elsewhere its ports are open and the token guards them
(the dashboard and Redis are on loopback everywhere). Nodes share the machine's address and differ in their ports.
"""

import atexit
import logging
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import ray
from ray._raylet import Config  # pyright: ignore[reportAttributeAccessIssue]

from cluster.local.processes import kill, launch
from cluster.local.provider import Autoscaling, autoscaling_config, head_environment
from cluster.local.ray_start import RAY, STARTED, Machine, environment, free_ports, head_command, node_command
from cluster.local.store import RedisStore, RocksStore, Store
from cluster.session import temporary_folder, write_token
from dreamer4.errors import RunError
from dreamer4.files import write_json

STORES = {"redis": RedisStore, "rocksdb": RocksStore}


@dataclass(frozen=True)
class LocalNode:
    """One `ray start` and all that it started."""

    name: str
    node_id: str  # what `ray.nodes()` and `draining_nodes()` call it
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


class LocalCluster:
    """A cluster for the length of a `with` block. It begins with a head and no other node.

    Use it from one thread at a time.

    Args:
        store: where the head keeps its memory, so that `restart_head` finds it again; None: nowhere.
        autoscaling: what Ray's autoscaler adds and takes away by itself, besides the nodes that are added here.
        dashboard: which takes jobs as well; without it the head is up sooner.
        paths: folders besides the repository that nodes and drivers import from.
        settings: further environment variables of nodes and drivers.
        start_timeout: seconds that a node may take to come up.

    Raises:
        RunError: the head didn't start, or redis-server is not installed.
    """

    def __init__(
        self,
        *,
        store: Literal["redis", "rocksdb"] | None = None,
        autoscaling: Autoscaling | None = None,
        dashboard: bool = True,
        object_store_mb: int = 150,
        paths: Sequence[Path] = (),
        settings: Mapping[str, str] | None = None,
        start_timeout: float = 120,
    ):
        self.dashboard, self.object_store_mb, self.start_timeout = dashboard, object_store_mb, start_timeout
        self.autoscaling = autoscaling
        self.head: LocalNode | None = None
        self.nodes: list[LocalNode] = []
        self.store: Store | None = None
        self._started = 0
        self._closing = ExitStack()
        try:
            atexit.register(self.close)
            self._closing.callback(atexit.unregister, self.close)
            self.folder = self._closing.enter_context(temporary_folder())
            self._env = environment(write_token(self.folder), paths, settings or {})
            gcs, dashboard_port, client, *metrics = free_ports(5)
            self._ports = gcs, dashboard_port, client
            # Two ports that would be the same for every cluster of a machine.
            self._env |= dict(zip(("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT"), map(str, metrics), strict=True))
            if store is not None:
                self.store = made = STORES[store](self.folder)
                self._closing.callback(made.close)
            self._closing.callback(self._kill_all)
            self.start_head()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """`host:port` of the head, as in RAY_ADDRESS."""
        return f"{ray.util.get_node_ip_address()}:{self._ports[0]}"

    @property
    def dashboard_url(self) -> str:
        return f"http://127.0.0.1:{self._ports[1]}"

    @property
    def token_path(self) -> Path:
        return Path(self._env["RAY_AUTH_TOKEN_PATH"])

    def env(self) -> dict[str, str]:
        """The whole environment of a driver that attaches to this cluster, or of `ray job submit`."""
        return {**self._env, "RAY_ADDRESS": self.address, "RAY_API_SERVER_ADDRESS": self.dashboard_url}

    @contextmanager
    def connected(self) -> Iterator[None]:
        """This very process as a driver, for the length of a `with` block."""
        names = [name for name in {**os.environ, **self.env()} if name.startswith("RAY_")]
        before = {name: os.environ.pop(name, None) for name in names}
        os.environ |= {name: value for name, value in self.env().items() if name.startswith("RAY_")}
        Config.initialize("")  # Ray looks at these variables when it is imported, and that was before
        try:
            ray.init(address=self.address, logging_level=logging.ERROR, log_to_driver=False)
            yield
        finally:
            ray.shutdown()
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            Config.initialize("")

    def start_head(self) -> LocalNode:
        """Starts the head, which is done already when the cluster is made.

        Raises:
            RunError: it is up, or doesn't come up.
        """
        if self.head is not None:
            raise RunError("the head of the local cluster is up: kill_head() before another start_head()")
        folder, node_id, env = self.folder / "head", secrets.token_hex(28), dict[str, str]()
        # A node that survived the former head makes `ray start --head` believe that this very head is up.
        (folder / "ray_current_cluster").unlink(missing_ok=True)
        command = head_command(folder, *self._ports, self.object_store_mb)
        if self.store is not None:
            env |= self.store.env()
            command += self.store.arguments()
        if self.autoscaling is not None:
            file = self.folder / "autoscaling.json"
            write_json(file, autoscaling_config(self.autoscaling, node_id, self.address, self.folder))
            env |= head_environment(node_id)
            command.append(f"--autoscaling-config={file}")
        if not self.dashboard:
            command.append("--include-dashboard=false")
        self.head = self._launch("head", node_id, command, env)
        self.wait(self.head)
        return self.head

    def restart_head(self) -> LocalNode:
        """`kill_head` where that wasn't done, and a head at the same place: with its memory where it has a store."""
        self.kill_head()
        return self.start_head()

    def kill_head(self) -> None:
        """SIGKILL for the head and all that belongs to it: jobs' drivers as well, which Ray runs there."""
        if self.head is not None:
            kill([self.head.process])
            self.head = None

    def add_node(
        self,
        cpus: int = 1,
        gpus: int = 0,
        resources: Mapping[str, float] | None = None,
        labels: Mapping[str, str] | None = None,
        wait: bool = True,
    ) -> LocalNode:
        """A node that has joined, or with `wait=False` one that is about to.

        Args:
            gpus: which need not exist; actors see their numbers in CUDA_VISIBLE_DEVICES.
            labels: for label selectors, `{"role": "imagine"}`.

        Raises:
            RunError: it doesn't come up.
        """
        self._started += 1
        name = f"n{self._started}"
        machine = Machine(cpus, gpus, resources or {}, labels or {}, self.object_store_mb)
        node = self._launch(name, secrets.token_hex(28), node_command(self.folder / name, self.address, machine), {})
        self.nodes.append(node)
        try:
            if wait:
                self.wait(node)
        except RunError:
            self.kill_node(node)
            raise
        return node

    def wait(self, node: LocalNode) -> None:
        """Returns when a node has joined.

        Raises:
            RunError: it has ended, or took longer than `start_timeout`; with the last lines of its log.
        """
        deadline = time.monotonic() + self.start_timeout
        while STARTED not in (output := node.log.read_text(errors="replace")):
            if node.process.poll() is not None or time.monotonic() > deadline:
                end = " | ".join(line.strip() for line in output.splitlines()[-5:] if line.strip())
                raise RunError(f"node '{node.name}' of the local cluster did not start: {end or 'it said nothing'}")
            time.sleep(0.1)

    def kill_node(self, node: LocalNode) -> None:
        """SIGKILL for a node and all that belongs to it, as if its machine had lost power."""
        kill([node.process])
        self.nodes.remove(node)

    def kill_launched(self, node_id: str) -> None:
        """The same for a node that the autoscaler launched; it will launch another one if that is needed."""
        os.kill(int((self.folder / f"{node_id[:8]}.pid").read_text()), signal.SIGTERM)  # its guard kills all of it

    def drain_node(self, node: LocalNode, deadline: float) -> None:
        """The notice that a node will be taken away in `deadline` seconds, as spot machines get it.

        The scheduler gives it nothing more and `draining_nodes` lists it. Whoever calls this has to kill it as well:
        Ray ends a draining node by itself only when nothing runs there, or after the deadline.

        Raises:
            RunError: the head refuses it, or doesn't answer.
        """
        reason = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=notice of a local cluster"]
        when = f"--deadline-remaining-seconds={deadline:.0f}"
        command = [*RAY, "drain-node", f"--address={self.address}", f"--node-id={node.node_id}", *reason, when]
        done = subprocess.run(command, env=self.env(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise RunError(f"node '{node.name}' was not drained: {(done.stderr or done.stdout).strip()}")

    def close(self) -> None:
        """Ends everything, and removes the folder. May be called again."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.__exit__(kind, error, trace)

    def _launch(self, name: str, node_id: str, command: Sequence[str], env: Mapping[str, str]) -> LocalNode:
        """A node whose id we choose, so that it needn't be asked for."""
        log = self.folder / f"{name}.log"
        log.unlink(missing_ok=True)  # of a former head
        whole = {**self._env, **env, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": node_id}
        return LocalNode(name, node_id, launch(command, whole, log), log)

    def _kill_all(self) -> None:
        nodes = [*self.nodes, *([] if self.head is None else [self.head])]
        kill([node.process for node in nodes])
        self.nodes, self.head = [], None
