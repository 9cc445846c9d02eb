"""Processes that compute together: meeting, parting, and sums over all of them.

Whoever starts the processes (`cluster`) tells them who they are and where rank 0 listens; nothing here knows how.
"""

import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from ipaddress import ip_address

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from dreamer4.errors import RunError


def listen(address: str) -> socket.socket:
    """Where the others meet rank 0: a free port of this address, and of no other.

    Rank 0 makes it, tells the others `getsockname()[1]`, and hands it to `init_shard`; so the port can't be lost in
    between.
    """
    return _server(address, 0)


def init_shard(
    rank: int,
    shards: int,
    address: str,
    port: int,
    backend: str = "gloo",
    listener: socket.socket | None = None,
    timeout: float = 60.0,
) -> DeviceMesh:
    """Makes this process one of `shards` ranks, and returns their mesh, of one dimension named "shard".

    Blocks until all ranks have called it. A process is in one such group at a time; `close_shard` ends it.

    Args:
        address: of rank 0. On a loopback address gloo stays on the loopback device as well. On any other, gloo takes
            the device of this host's name, or that of the environment variable GLOO_SOCKET_IFNAME.
        backend: "gloo" for CPUs, "nccl" for GPUs. With nccl each rank needs a GPU of its own.
        listener: what `listen` gave to rank 0; None = rank 0 listens on `address` and `port` now.
        timeout: seconds that the ranks wait for each other, here and in every collective. A rank that dies is noticed
            at once by gloo, after this time by nccl.

    Raises:
        RunError: the ranks don't find each other in time.
    """
    limit = timedelta(seconds=timeout)
    if backend == "gloo":
        _stay_on_loopback(address)
    handle = None
    try:
        if rank == 0:
            handle = (listener or _server(address, port)).detach()  # the store closes it
        store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            address, port, shards, rank == 0, limit, master_listen_fd=handle
        )
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


def all_sum(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> list[Tensor]:
    """The sums of equally shaped tensors over the ranks of a group, in one message; without a group, themselves.

    All ranks get the same bits. No gradient flows through the sums.
    """
    if group is None:
        return list(tensors)
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    dist.all_reduce(flat, group=group)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def _server(address: str, port: int) -> socket.socket:
    family, *_ = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server((address, port), family=family)


def _stay_on_loopback(address: str) -> None:
    """Otherwise gloo goes by the host's name, which may have no address, or one that others can reach."""
    resolved = socket.getaddrinfo(address, None)[0][4][0]
    if ip_address(resolved).is_loopback:
        names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
        os.environ.setdefault("GLOO_SOCKET_IFNAME", names[0])
