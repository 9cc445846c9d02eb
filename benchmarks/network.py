"""Hosts without machines: Linux network namespaces on one switch, each with an address and a cable of its own.

A process in a host has no other network than this one, so nothing reaches it over the loopback of another host, and a
cable that is pulled is silent, as a real one: no connection is closed. Disk, memory and process numbers are the
machine's. The switch is in a namespace of its own too: the machine's network is not touched. Needs root and iproute2.
"""

import os
import secrets
import shutil
import subprocess
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

from dreamer4.errors import RunError

PREFIX = "d4"  # of a namespace's name, then the process that made it
SUBNET = "10.77.0"  # exists in these namespaces only


def usable() -> str:
    """Why namespaces can't be made here, or "" where they can."""
    if shutil.which("ip") is None:
        return "the command `ip` is missing: install iproute2"
    name = f"{PREFIX}-{os.getpid()}-{secrets.token_hex(2)}-probe"
    made = _ip("netns", "add", name)
    _ip("netns", "delete", name)
    return made.stderr.strip() if made.returncode else ""


class Network:
    """Hosts 1, 2, ... on one switch, for the length of a `with` block. They are removed whatever becomes of it.

    Raises:
        RunError: namespaces can't be made, such as for want of root; with the kernel's words.
    """

    def __init__(self, hosts: int):
        _remove_abandoned()
        self._stem = f"{PREFIX}-{os.getpid()}-{secrets.token_hex(2)}"
        self._closing = ExitStack()
        try:
            switch = self._namespace("switch")
            self._do("-n", switch, "link", "add", "bridge", "type", "bridge")
            self._do("-n", switch, "link", "set", "bridge", "up")
            for host in range(1, hosts + 1):
                self._connect(host, switch)
        except BaseException:
            self.close()
            raise

    def address(self, host: int) -> str:
        return f"{SUBNET}.{host}"

    def inside(self, host: int) -> list[str]:
        """What to write before a command that shall run on a host."""
        return ["ip", "netns", "exec", f"{self._stem}-{host}"]

    def cut(self, host: int) -> None:
        """Pulls a host's cable. Its processes live on and hear nothing."""
        self._do("-n", f"{self._stem}-switch", "link", "set", f"port{host}", "down")

    def restore(self, host: int) -> None:
        self._do("-n", f"{self._stem}-switch", "link", "set", f"port{host}", "up")

    def close(self) -> None:
        """Removes the hosts; their processes have to be gone. May be called again."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _namespace(self, name: str) -> str:
        whole = f"{self._stem}-{name}"
        self._do("netns", "add", whole)
        self._closing.callback(_ip, "netns", "delete", whole)  # and with it all that lies in it
        return whole

    def _connect(self, host: int, switch: str) -> None:
        name = self._namespace(str(host))
        port = f"port{host}"
        self._do("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
        self._do("-n", switch, "link", "set", port, "master", "bridge", "up")
        self._do("-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        self._do("-n", name, "link", "set", "lo", "up")
        self._do("-n", name, "link", "set", "eth0", "up")
        # It leads nowhere. Ray finds its own address by asking the kernel from which one it would leave.
        self._do("-n", name, "route", "add", "default", "dev", "eth0")

    def _do(self, *words: str) -> None:
        done = _ip(*words)
        if done.returncode:
            raise RunError(f"can't make the hosts of a drill, `ip {' '.join(words)}`: {done.stderr.strip()}")


def _ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)


def _remove_abandoned() -> None:
    """Those of processes that were killed."""
    for line in _ip("netns", "list").stdout.splitlines():
        name = line.partition(" ")[0]
        with suppress(ValueError, IndexError):
            prefix, pid = name.split("-")[:2]
            if prefix == PREFIX and not os.path.exists(f"/proc/{int(pid)}"):
                _ip("netns", "delete", name)
