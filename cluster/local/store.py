"""Where the head of a local cluster keeps its memory (actors, jobs, placement groups), so that a new head finds it."""

import secrets
import shutil
import socket
import time
from pathlib import Path
from typing import Protocol

from cluster.local.processes import kill, launch
from cluster.local.ray_start import free_ports
from dreamer4.errors import RunError


class Store(Protocol):
    def env(self) -> dict[str, str]:
        """For the head."""
        ...

    def arguments(self) -> list[str]:
        """For the head's `ray start`."""
        ...

    def close(self) -> None: ...


class RocksStore:
    """Within the head, on its disk. Experimental in Ray 2.60, and needs nothing installed.

    Args:
        folder: must outlive the head; one head at a time.
    """

    def __init__(self, folder: Path):
        self.path = folder / "gcs"

    def env(self) -> dict[str, str]:
        return {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(self.path)}

    def arguments(self) -> list[str]:
        return []

    def close(self) -> None:
        pass


class RedisStore:
    """A Redis server of our own, on loopback, with a password.

    Ray takes the password on its command line only, where other users of the machine can read it.

    Raises:
        RunError: redis-server is not installed, or didn't start.
    """

    def __init__(self, folder: Path):
        program = shutil.which("redis-server")
        if program is None:
            raise RunError("redis-server is not installed: `apt-get install redis-server`, or use the store 'rocksdb'")
        self.port, self.password = free_ports(1)[0], secrets.token_hex(16)
        home, log = folder / "redis", folder / "redis.log"
        home.mkdir(mode=0o700)
        lines = ["bind 127.0.0.1", f"port {self.port}", f"requirepass {self.password}", f"dir {home}", "appendonly yes"]
        (home / "redis.conf").write_text("\n".join([*lines, 'save ""', "daemonize no", ""]))
        self.process = launch([program, str(home / "redis.conf")], {}, log)
        deadline = time.monotonic() + 30
        while not _answers(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                kill([self.process])
                raise RunError(f"redis-server did not start: {log.read_text().strip().splitlines()[-1:]}")
            time.sleep(0.05)

    def env(self) -> dict[str, str]:
        return {"RAY_REDIS_ADDRESS": f"127.0.0.1:{self.port}", "RAY_external_storage_namespace": "dreamer4"}

    def arguments(self) -> list[str]:
        return ["--redis-username=default", f"--redis-password={self.password}"]

    def close(self) -> None:
        kill([self.process])


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
