"""Processes that compute together: how they meet and part.

Whoever starts the processes (`cluster`) tells them who they are and where rank 0 listens; nothing here knows how.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from ipaddress import ip_address

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from dreamer4.errors import RunError

DEVICE = "GLOO_SOCKET_IFNAME"  # the network device that gloo uses


def reserve(address: str) -> socket.socket:
    """Where the others will meet rank 0: a free port of this address, and of no other.

    Rank 0 makes it, tells the others `getsockname()[1]`, and hands it to `init_shard`, so nobody can take the port in
    between. Until then it refuses connections: one that was accepted too early would wait without a timeout.
    """
    return _bound(address, 0)


def init_shard(
    rank: int,
    shards: int,
    address: str,
    port: int,
    backend: str = "gloo",
    reserved: socket.socket | None = None,
    timeout: float = 60.0,
) -> DeviceMesh:
    """Makes this process one of `shards` ranks, and returns their mesh, of one dimension named "shard".

    Blocks until all ranks have called it. A process is in one such group at a time; `close_shard` ends it.

    Args:
        address: of rank 0. On a loopback address gloo stays on the loopback device as well. On any other, gloo takes
            the device of this host's name, or that of the environment variable GLOO_SOCKET_IFNAME.
        backend: "gloo" for CPUs, "nccl" for GPUs. With nccl each rank needs a GPU of its own.
        reserved: what `reserve` gave to rank 0; None = it takes `address` and `port` now.
        timeout: seconds that the ranks wait for each other, here and in every collective. A rank that dies is noticed
            at once by gloo, after this time by nccl.

    Raises:
        RunError: the ranks don't find each other in time.
    """
    limit, handle = timedelta(seconds=timeout), None
    try:
        if rank == 0:
            place = reserved or _bound(address, port)
            place.listen()
            handle = place.detach()  # the store closes it
        store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            address, port, shards, rank == 0, limit, master_listen_fd=handle
        )
        with _device_of(address):
            dist.init_process_group(backend, store=store, rank=rank, world_size=shards, timeout=limit)
        return init_device_mesh("cuda" if backend == "nccl" else "cpu", (shards,), mesh_dim_names=("shard",))
    except (OSError, RuntimeError) as error:
        close_shard()
        raise RunError(
            f"rank {rank} of {shards} can't join the group at {address}:{port}: do all ranks run, and can they reach "
            f"each other within {timeout:g} s? ({error})"
        ) from error


def close_shard() -> None:
    """Leaves the group, if there is one. Its other ranks can't go on without this one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _bound(address: str, port: int) -> socket.socket:
    family, *_ = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family)
    try:
        if port:  # a chosen one may still be remembered from the group before
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address, port))
    except BaseException:
        bound.close()
        raise
    return bound


@contextmanager
def _device_of(address: str) -> Iterator[None]:
    """Keeps gloo on the loopback device if the ranks meet there.

    It would go by the host's name, which may have no address, or one that others can reach.
    """
    resolved = socket.getaddrinfo(address, None)[0][4][0]
    if DEVICE in os.environ or not ip_address(resolved).is_loopback:
        yield
        return
    os.environ[DEVICE] = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    try:
        yield
    finally:
        del os.environ[DEVICE]
