"""Child processes that end with us, whatever becomes of us, and take all that they started with them (`guard.py`).

Linux only, as is a Ray of several nodes.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from cluster.local import guard
from dreamer4.errors import RunError


def launch(command: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Starts a command under a guard, which ends with us or by `kill`, in a session of its own and without a terminal.

    Args:
        env: its whole environment.
        log: where its output is appended.
    """
    guarded = [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), *command]

    def start() -> subprocess.Popen[bytes]:
        with open(log, "ab") as output:
            return subprocess.Popen(
                guarded, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    return _launcher().submit(start).result()


@cache
def _launcher() -> ThreadPoolExecutor:
    """One thread that lives as long as we do: to the kernel the parent is the thread that forked, not the process."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="launcher")


def kill(guards: Sequence[subprocess.Popen[bytes]], timeout: float = 30) -> None:
    """SIGKILL for launched commands and all that they started; returns when nothing of it is left.

    Raises:
        RunError: something is still there after `timeout` seconds, such as in an uninterruptible system call.
    """
    for process in guards:
        process.terminate()
    for process in guards:
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            left = ", ".join(map(str, sorted(guard.offspring(process.pid))))
            raise RunError(f"processes {left} survived SIGKILL for {timeout:g} s") from error
