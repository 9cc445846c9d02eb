"""A run's models, read from its files by the processes of a stage."""

from pathlib import Path

import pytest
import torch
from factories import lively
from handmade import empty_run

from cluster.models import RunData, load_agent, load_agent_share, load_policy, new_dynamics, new_heads
from cluster.presets import smoke
from cluster.run import Run
from cluster.settings import override
from dreamer4.errors import CheckpointError, ConfigError, DataError
from learners.agent import AgentModel
from learners.iql import IQLModel
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


def test_iql_has_a_policy_for_every_temperature(tmp_path):
    with Run.open(tmp_path, override(smoke(), ["iql_training.also=[0.03,0.01]"])) as run:
        pass
    model = lively(IQLModel(new_heads(run).policy, run.config.dynamics.feature_width, run.config.iql_training))
    run.checkpoints("iql").save(1, model.state_dict(), {}, run.identity())
    assert run.config.iql_policies == ("iql", "iql@0.03", "iql@0.01")
    for name, policy in zip(run.config.iql_policies, model.policies, strict=True):
        loaded = load_policy(run, name).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in policy.state_dict().items()), name
    first, second = (policy.state_dict()["mlp.output.weight"] for policy in model.policies[:2])
    assert not torch.equal(first, second), "or nothing was compared"
    with pytest.raises(ConfigError, match=r"no policy 'iql@0\.02' in .*but iql, iql@0\.03, iql@0\.01"):
        load_policy(run, "iql@0.02")


def test_an_agent_that_was_not_trained_has_no_share(tmp_path, mesh):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint in '.*agent'"):
        load_agent_share(empty_run(tmp_path), mesh)


@pytest.mark.parametrize(
    ("policy", "command"),
    [
        ("bc", ": `dreamer4 train agent --run {run}` makes one"),
        ("pmpo", ": `dreamer4 train policy --run {run}` makes one"),
        ("iql", ": `dreamer4 quickstart --run {run}` makes one, if the setting `controls` has 'iql' in it"),
        ("filtered_bc", "makes one, if the setting `controls` has 'filtered_bc' in it"),
    ],
)
def test_who_wants_what_was_not_trained_is_told_the_command_that_trains_it(tmp_path, policy, command):
    run = empty_run(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_policy(run, policy)
    assert str(caught.value).endswith(command.format(run=run.path))


def test_run_without_recordings_says_how_it_would_have_some(tmp_path):
    run = empty_run(tmp_path)
    with pytest.raises(DataError, match=rf"run '{run.path}' has no recordings: .*data collect --run.*a pulled run"):
        RunData(run)


def test_a_damaged_file_has_no_share(tmp_path, mesh):
    run = run_with_agent(tmp_path)
    file = run.checkpoints("agent").weights_file()
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors' is cut short"):
        load_agent_share(run, mesh)
