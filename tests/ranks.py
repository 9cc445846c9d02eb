"""Real processes that form a gloo group on loopback, for the tests of what ranks compute together.

They are forked from a server that has imported torch once, which takes seconds; still a test module shares its group.
What a rank is told to run is named by its module, which has to be one that it can import, such as `divided`.
"""

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from learners.process_group import close_shard, init_shard, reserve

ADDRESS = "127.0.0.1"


class RankError(Exception):
    """What went wrong in a rank, as text."""


class Ranks:
    """`count` processes; `call` runs a function of their mesh in all of them."""

    def __init__(self, count: int, timeout: float = 120.0):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "torch.distributed.tensor"])  # many seconds
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, count, timeout, theirs), daemon=True)
            process.start()
            theirs.close()  # so that the death of the process is the end of the pipe
            self.pipes.append(ours)
            self.processes.append(process)
        port = self.receive(0)
        for pipe in self.pipes:
            pipe.send_bytes(pickle.dumps(port))
        for rank in range(count):
            self.receive(rank)

    def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The results of `function(mesh, *arguments)`, by rank.

        Raises:
            RankError: of the ranks that failed.
        """
        self.send(function, *arguments)
        answers = [self.receive(rank) for rank in range(len(self.pipes))]
        if failures := [str(answer) for answer in answers if isinstance(answer, RankError)]:
            raise RankError("\n".join(failures))
        return answers

    def send(self, function: Callable[..., Any], *arguments: Any) -> None:
        for pipe in self.pipes:
            pipe.send_bytes(pickle.dumps((function, arguments)))

    def receive(self, rank: int) -> Any:
        """The next answer of a rank, a `RankError` where it failed."""
        return pickle.loads(self.pipes[rank].recv_bytes())

    def kill(self, rank: int) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        self.processes[rank].join()

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(10)
            process.kill()


def _serve(rank: int, count: int, timeout: float, pipe: Connection) -> None:
    torch.set_num_threads(1)

    def answer(value: Any) -> None:
        pipe.send_bytes(pickle.dumps(value))

    reserved = reserve(ADDRESS) if rank == 0 else None
    if reserved is not None:
        answer(reserved.getsockname()[1])
    port = pickle.loads(pipe.recv_bytes())
    mesh = init_shard(rank, count, ADDRESS, port, "gloo", reserved, timeout)
    answer("ready")
    try:
        while True:
            function, arguments = pickle.loads(pipe.recv_bytes())
            try:
                answer(function(mesh, *arguments))
            except Exception:
                answer(RankError(f"rank {rank}: {traceback.format_exc()}"))
    except (EOFError, BrokenPipeError):
        close_shard()
