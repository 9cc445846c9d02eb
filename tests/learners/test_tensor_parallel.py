"""The world model divided over real processes: the numbers of the undivided one, the same on every rank."""

from pathlib import Path

import divided
import numpy as np
import pytest
import torch
from divided import FOUR, PAIR, Result
from factories import tiny_dynamics, tiny_heads
from ranks import RankError, Ranks
from worlds import make_world

from dreamer4.checkpoint import save_tensors
from dreamer4.errors import ConfigError
from learners.agent import AgentModel
from learners.tensor_parallel import Cut, check_shards

pytestmark = pytest.mark.xdist_group("ranks")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}  # of the largest number
BOTH = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@pytest.fixture(scope="module")
def pair():
    ranks = Ranks(2)
    yield ranks
    ranks.close()


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, as a share of the largest number."""
    assert one.shape == other.shape and one.dtype == other.dtype
    return float((one - other).abs().max() / other.abs().max())


def assert_close(results: list[Result], whole: Result, dtype: torch.dtype) -> None:
    """All ranks have the same bits, and nearly those of the undivided model."""
    for name, expected in whole.items():
        assert all(torch.equal(result[name], results[0][name]) for result in results), name
        assert distance(results[0][name], expected) < TOLERANCE[dtype], name


@BOTH
def test_a_pass_equals_that_of_the_undivided_model(pair, dtype):
    assert_close(pair.call(divided.batch_pass, PAIR, dtype), divided.batch_pass(None, PAIR, dtype), dtype)


def test_fused_rows_cut_as_one_make_another_model(pair):
    """Negative control of the test above: rank 0 would take all queries for its queries, keys and values."""
    wrong, whole = pair.call(divided.batch_pass_with_rows_cut_as_one), divided.batch_pass(None, PAIR)
    assert distance(wrong[0]["features_BTM"], whole["features_BTM"]) > 0.1


@BOTH
def test_a_stream_equals_that_of_the_undivided_model_after_eviction(pair, dtype):
    """Each rank's cache holds the heads of its own, as plain tensors (asserted in the ranks)."""
    results, whole = pair.call(divided.stream, dtype), divided.stream(None, dtype)
    for name in ("keys", "values"):  # [layers, B, S, Nkv, C - 1, K]
        caches = [result.pop(name) for result in results]
        assert all(cache.shape[3] == 1 for cache in caches)
        assert distance(torch.cat(caches, dim=3), whole.pop(name)) < TOLERANCE[dtype]
    assert_close(results, whole, dtype)


@BOTH
def test_a_dream_has_the_actions_and_features_of_the_undivided_model(pair, dtype):
    results, whole = pair.call(divided.dream, dtype), divided.dream(None, dtype)
    assert torch.equal(results[0]["act_out_BTA"], whole["act_out_BTA"])
    assert_close(results, whole, dtype)


def test_a_workers_rollouts_are_those_of_the_undivided_model(pair, tmp_path):
    make_world(tmp_path)
    first, second = pair.call(divided.rollouts, tmp_path)
    for mine, other, expected in zip(first, second, divided.rollouts(None, tmp_path), strict=True):
        for name, value in expected.items():
            assert np.array_equal(mine[name], other[name]), name
            assert np.allclose(mine[name], value, rtol=1e-5, atol=1e-5), name


def test_each_rank_holds_its_share_of_the_layers_and_all_of_the_rest(pair):
    """Counted in numbers and in bytes: a view would keep the whole matrix alive."""
    whole = divided.holdings(None)
    layers = [name for name in whole if ".layers." in name and name.endswith(("qkv", "out", "up", "down"))]
    assert len(layers) == 4 * PAIR["depth"]
    for holdings in pair.call(divided.holdings):
        assert holdings == {n: (c // 2, b // 2) if n in layers else (c, b) for n, (c, b) in whole.items()}
    assert sum(whole[name][0] for name in layers) > 0.8 * sum(count for count, _ in whole.values())


def agent_file(folder: Path) -> Path:
    dynamics = tiny_dynamics(**PAIR)
    file = folder / "weights.safetensors"
    save_tensors(file, AgentModel(dynamics, tiny_heads(dynamics)).state_dict())
    return file


def test_shares_read_from_a_file_are_those_of_the_whole_model(pair, tmp_path):
    read, cut = pair.call(divided.loaded_pass, agent_file(tmp_path)), pair.call(divided.batch_pass, PAIR)
    assert all(torch.equal(one[name], other[name]) for one, other in zip(read, cut, strict=True) for name in one)


def test_a_file_of_another_model_is_refused(pair, tmp_path):
    file = tmp_path / "other.safetensors"
    save_tensors(file, AgentModel(tiny_dynamics(), tiny_heads(tiny_dynamics())).state_dict())
    with pytest.raises(
        RankError, match=r"CheckpointError: the other\.safetensors checkpoint is of another model: 'slot"
    ):
        pair.call(divided.loaded_pass, file)


def test_ranks_that_agree_may_compare_what_they_computed(pair):
    compared, alone = pair.call(divided.differing_pass, True, False), pair.call(divided.batch_pass, PAIR)
    assert torch.equal(compared[0]["features_BTM"], alone[0]["features_BTM"])


def test_ranks_that_differ_are_found_out_by_all(pair):
    """The control: nobody can tell from the features, which come from sums and are the same, and wrong."""
    with pytest.raises(RankError) as raised:
        pair.call(divided.differing_pass, True)
    assert str(raised.value).count("RunError: the 2 ranks of a world model computed different things") == 2
    first, second = (result["features_BTM"] for result in pair.call(divided.differing_pass, False))
    assert torch.equal(first, second)
    assert distance(first, divided.batch_pass(None, PAIR)["features_BTM"]) > 1e-3


@pytest.mark.parametrize(("shards", "sizes"), [(3, {"heads": 6, "kv_heads": 2}), (2, {"hidden": 25}), (0, {})])
def test_a_number_of_shards_that_does_not_divide_is_refused(shards, sizes):
    config = tiny_dynamics(**{**PAIR, "width": 48, **sizes}).config
    numbers = rf"heads \({config.heads}\), kv_heads \({config.kv_heads}\), hidden \({config.hidden}\)"
    with pytest.raises(ConfigError, match=rf"^{shards} shards don't divide the world model: {numbers} must be mult"):
        check_shards(config, shards)


def test_ranks_refuse_a_model_that_they_cannot_divide(pair):
    with pytest.raises(RankError, match=r"ConfigError: 2 shards don't divide.*kv_heads \(1\)"):
        pair.call(divided.batch_pass, {**PAIR, "kv_heads": 1})


def test_a_share_is_cut_from_each_fused_part():
    matrix = torch.arange(12)[:, None] * torch.ones(1, 2)
    cut = Cut(0, (8, 4))
    assert cut.share(matrix, 1, 2)[:, 0].tolist() == [4, 5, 6, 7, 10, 11]
    assert Cut(1, (12,)).share(matrix.T, 0, 3)[0].tolist() == [0, 1, 2, 3]


@pytest.mark.slow
def test_four_ranks_equal_one():
    ranks = Ranks(4)
    try:
        assert_close(ranks.call(divided.batch_pass, FOUR), divided.batch_pass(None, FOUR), torch.float32)
    finally:
        ranks.close()


@pytest.mark.slow
def test_a_rank_whose_peer_is_killed_fails_and_delivers_nothing():
    """At once, and not after the timeout of ten minutes, which the test could not wait for."""
    ranks = Ranks(2, timeout=600.0)
    try:
        ranks.call(divided.dream)
        ranks.send(divided.dream_for_ever)
        ranks.kill(1)
        assert ranks.pipes[0].poll(300)
        answer = ranks.receive(0)
        assert isinstance(answer, RankError), "the rollouts that a rank makes alone are worth nothing"
    finally:
        ranks.close()
