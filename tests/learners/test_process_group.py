"""How processes meet. What they do together is tested in `test_tensor_parallel` and `test_data_parallel_pmpo`."""

import os

import pytest
import torch
import torch.distributed as dist

from dreamer4.errors import RunError
from learners.process_group import DEVICE, close_shard, init_shard, reserve

ADDRESS = "127.0.0.1"


@pytest.fixture(autouse=True)
def leave():
    yield
    close_shard()


def join_alone(timeout: float = 60.0):
    reserved = reserve(ADDRESS)
    return init_shard(0, 1, *reserved.getsockname(), "gloo", reserved, timeout)


def test_a_group_of_one_sums_its_own():
    mesh = join_alone()
    assert (mesh.size(), mesh.get_local_rank(), mesh.mesh_dim_names) == (1, 0, ("shard",))
    one = torch.ones(2)
    dist.all_reduce(one, group=mesh.get_group())
    assert one.tolist() == [1.0, 1.0]


def test_a_process_that_left_may_join_again():
    for _ in range(2):
        join_alone()
        close_shard()
    close_shard()  # leaving twice is no mistake
    assert not dist.is_initialized()


def test_rank_0_is_met_on_one_address_only():
    """Whoever reaches the store could write to it; it asks for no password."""
    with reserve(ADDRESS) as reserved:
        assert reserved.getsockname()[0] == ADDRESS


def test_a_group_on_loopback_leaves_the_environment_as_it_was(monkeypatch):
    monkeypatch.delenv(DEVICE, raising=False)
    join_alone()
    assert DEVICE not in os.environ
    close_shard()
    monkeypatch.setenv(DEVICE, "lo")
    join_alone()
    assert os.environ[DEVICE] == "lo"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_nobody_joins_gives_up_with_a_sentence(rank):
    """Rank 1 also where rank 0 lives and has only reserved its port."""
    with reserve(ADDRESS) as reserved:
        port = reserved.getsockname()[1]
        message = rf"^rank {rank} of 2 can't join the group at 127\.0\.0\.1:{port}: .* within 1 s\?"
        with pytest.raises(RunError, match=message):
            init_shard(rank, 2, ADDRESS, port, "gloo", reserved if rank == 0 else None, timeout=1.0)
    assert not dist.is_initialized()


def test_a_port_that_is_taken_is_named():
    with reserve(ADDRESS) as taken, pytest.raises(RunError, match=r"rank 0 of 1 can't join .*Address already in use"):
        init_shard(0, 1, ADDRESS, taken.getsockname()[1])
