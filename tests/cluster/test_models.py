"""A run's models, read from its files by the processes of a stage."""

from pathlib import Path

import pytest
import torch
from factories import lively
from handmade import empty_run

from cluster.models import load_agent, load_agent_share, new_dynamics, new_heads
from cluster.run import Run
from dreamer4.errors import CheckpointError
from learners.agent import AgentModel
from learners.process_group import close_shard, init_shard, reserve


@pytest.fixture
def mesh():
    """A group of one: what several ranks hold is tested in `learners.test_tensor_parallel`."""
    reserved = reserve("127.0.0.1")
    yield init_shard(0, 1, *reserved.getsockname(), "gloo", reserved)
    close_shard()


def run_with_agent(folder: Path) -> Run:
    run = empty_run(folder)
    model = lively(AgentModel(new_dynamics(run), new_heads(run)))
    run.checkpoints("agent").save(1, model.state_dict(), {}, run.identity())
    return run


def test_the_share_of_a_group_of_one_is_the_whole_agent(tmp_path, mesh):
    run = run_with_agent(tmp_path)
    share, whole = load_agent_share(run, mesh).state_dict(), load_agent(run).state_dict()
    assert share.keys() == whole.keys()
    for name, value in whole.items():
        mine = share[name].to_local() if hasattr(share[name], "to_local") else share[name]
        assert torch.equal(mine, value), name


def test_an_agent_that_was_not_trained_has_no_share(tmp_path, mesh):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint in '.*agent'"):
        load_agent_share(empty_run(tmp_path), mesh)


def test_a_damaged_file_has_no_share(tmp_path, mesh):
    run = run_with_agent(tmp_path)
    file = run.checkpoints("agent").weights_file()
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors' is cut short"):
        load_agent_share(run, mesh)
