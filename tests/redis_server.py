"""A real redis-server for tests: on loopback, behind a password, in a folder of its own, ended by its process id."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

MISSING = "redis-server is not on PATH: `apt-get install redis-server`, or set DREAMER4_NO_REDIS=1 to skip its tests"


def require_redis_server() -> str:
    """The path of the program. Without it tests fail, lest anybody takes them for passed; DREAMER4_NO_REDIS=1 skips."""
    if os.environ.get("DREAMER4_NO_REDIS") == "1":
        pytest.skip("DREAMER4_NO_REDIS=1")
    return shutil.which("redis-server") or pytest.fail(MISSING, pytrace=False)


class RedisServer:
    """`kill` and `start` again keep port, password and, with `appendonly`, what was written."""

    def __init__(self, folder: Path, appendonly: bool = False):
        self.program, self.folder = require_redis_server(), folder
        self.password = secrets.token_hex(16)
        self.config = f"appendonly {'yes' if appendonly else 'no'}\nrequirepass {self.password}\n"
        self.port, self.process = 0, None
        for _ in range(5):  # somebody else may take the port before Redis does
            self.port = _free_port()
            if self.start():
                return
        pytest.fail(f"redis-server does not start:\n{(folder / 'log').read_text()}")

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> bool:
        """Whether it answers. The settings go in by its standard input: the password is on no command line."""
        settings = f'bind 127.0.0.1\nport {self.port}\nsave ""\ndir "{self.folder}"\nlogfile "{self.folder / "log"}"\n'
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
        self.process = subprocess.Popen([self.program, "-"], text=True, **pipes)
        assert self.process.stdin is not None
        self.process.stdin.write(settings + self.config)
        self.process.stdin.close()
        deadline = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                if self.client().info("server")["process_id"] == self.process.pid:
                    return True
            except RedisError:
                pass
            time.sleep(0.02)
        self.kill()
        return False

    def client(self) -> Redis:
        return Redis.from_url(self.url, decode_responses=True, socket_timeout=10)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
