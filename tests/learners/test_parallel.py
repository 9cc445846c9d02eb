"""Several processes, several passes and other precisions learn what one plain process learns."""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import spread
import torch
from ranks import Ranks
from spread import LEARNERS, STEPS, prepared, updates
from states import assert_equal
from torch import Tensor
from worlds import make_world

from dreamer4.checkpoint import Checkpoints
from dreamer4.errors import ConfigError
from learners.parallel import Parallel, ParallelConfig, buckets, check_batch, layers
from learners.parts import Part, Rows

pytestmark = pytest.mark.xdist_group("ranks")
REPLICATE, FSDP = ParallelConfig(), ParallelConfig("fsdp")
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def pair() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spread")
    make_world(folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> Callable[..., spread.Result]:
    """What one plain process learns, by the name of the learner."""
    return cache(lambda name, steps=STEPS: updates(None, folder, name, REPLICATE, steps))


def leaves(value: Any, name: str = "") -> dict[str, Tensor]:
    if isinstance(value, dict):
        return {k: v for key, child in value.items() for k, v in leaves(child, f"{name}.{key}").items()}
    if isinstance(value, list):
        return {k: v for i, child in enumerate(value) for k, v in leaves(child, f"{name}.{i}").items()}
    return {name: torch.as_tensor(value, dtype=torch.float32)}


def distance(one: Any, other: Any) -> float:
    """Largest difference of metrics, weights, optimizer and normaliser, relative where numbers are larger than 1."""
    ones, others = leaves(one), leaves(other)
    assert ones.keys() == others.keys()
    return max(float(((a - others[k]).abs() / others[k].abs().clamp_min(1)).max()) for k, a in ones.items())


def ways() -> Iterator[Any]:
    """Every learner with whole models; with sharded ones every model once, since how rows are counted is the same."""
    for name in LEARNERS:
        if "one length" not in name:
            yield pytest.param(name, REPLICATE, id=f"{name}-replicate")
            if not any(word in name for word in ("few", "all rows", "masked")):
                yield pytest.param(name, FSDP, id=f"{name}-fsdp")


@pytest.mark.parametrize(("name", "config"), list(ways()))
def test_two_processes_learn_what_one_does(pair, folder, alone, name, config):
    first, second = pair.call(updates, folder, name, config)
    assert distance(first, alone(name)) < TOLERANCE
    assert first["rows"] == second["rows"], "the processes agree to the bit"
    if config is REPLICATE:
        assert_equal(first, second)


@pytest.mark.parametrize(
    ("name", "mistake"),
    [("dynamics", "same_rows"), ("agent", "same_rows"), ("agent", "own_denominators"), ("dynamics", "own_gradients")],
)
def test_mistakes_of_spreading_are_found(pair, folder, alone, name, mistake):
    """Negative controls of the test above."""
    first, _ = pair.call(updates, folder, name, REPLICATE, STEPS, mistake)
    assert distance(first, alone(name)) > 100 * TOLERANCE


def test_a_sharded_model_is_held_in_shares(pair, folder):
    learner = prepared(None, folder, "agent", REPLICATE)
    learner.step(0)
    weights = sum(p.numel() for p in learner.module.parameters())
    for own_weights, own_moments in pair.call(spread.shards, folder, "agent"):
        assert 0.4 * weights < own_weights < 0.6 * weights
        assert own_moments == own_weights


@pytest.mark.parametrize("name", LEARNERS)
def test_parts_add_up_to_the_whole_batch(folder, name):
    """Some parts have a row more than others; two equal ones are those of two processes, above."""
    learner, parts = prepared(None, folder, name, REPLICATE), 3
    for index in range(4):
        whole = learner.losses(index)
        added = [learner.losses(index, Part(number, parts)) for number in range(parts)]
        for term, value in whole.items():
            total = float(sum(losses[term].detach() for losses in added))
            assert total == pytest.approx(float(value.detach()), rel=1e-5), term


def test_a_process_reads_its_own_rows_only(folder, monkeypatch):
    learner = prepared(None, folder, "agent", REPLICATE)
    rows, latents = [], learner.clips.latents
    monkeypatch.setattr(learner.clips.latents, "take", lambda f: rows.append(f) or latents.rows.take(f))
    learner.losses(0)
    learner.losses(0, Part(0, 2)), learner.losses(0, Part(1, 2))
    whole, first, second = (sorted(map(tuple, read.tolist())) for read in rows)
    assert len(first) == len(second) == len(whole) / 2
    assert sorted(first + second) == whole


@pytest.mark.parametrize("name", ["dynamics", "agent", "tokenizer"])
def test_accumulated_passes_are_the_same_in_any_number_of_processes(pair, folder, name):
    two, four = ParallelConfig(accumulate=2), ParallelConfig(accumulate=4)
    one_process = updates(None, folder, name, two)
    assert distance(updates(None, folder, name, four), one_process) < TOLERANCE
    for config in (two, ParallelConfig("fsdp", accumulate=2)):
        assert distance(pair.call(updates, folder, name, config)[0], one_process) < TOLERANCE


@pytest.mark.parametrize("name", ["dynamics", "agent", "tokenizer"])
def test_accumulation_gives_the_gradient_of_the_whole_batch(folder, alone, name):
    """The first update, whose normaliser is initialised by the whole batch, is that of a single pass."""
    config = ParallelConfig(accumulate=4)
    assert distance(updates(None, folder, name, config, 1), alone(name, 1)) < TOLERANCE
    later = distance(updates(None, folder, name, config), alone(name))
    assert later < 0.05, "later ones differ by the normaliser's last step"


@pytest.mark.parametrize(("before", "after"), [(FSDP, None), (None, FSDP), (FSDP, REPLICATE)])
def test_any_number_of_processes_goes_on_from_a_checkpoint(pair, folder, alone, tmp_path, before, after):
    """Written by one number of processes, read by another: the checkpoint on disk knows nothing of it."""

    def run(config, steps, saved=None):
        arguments = (folder, "agent", config or REPLICATE, steps, None, saved)
        return updates(None, *arguments) if config is None else pair.call(updates, *arguments)[0]

    half = run(before, 2)
    Checkpoints(tmp_path).save(2, half["weights"], half["state"], {})
    read = Checkpoints(tmp_path).load()
    saved = {"rows": half["rows"], "weights": read.weights, "state": read.state}
    assert distance(run(after, STEPS, saved), alone("agent")) < TOLERANCE


@pytest.mark.parametrize("config", [REPLICATE, FSDP, ParallelConfig(accumulate=2)])
def test_all_processes_stop_at_a_number_that_is_none(pair, folder, config):
    """The bad row is one of rank 1's; rank 0 doesn't wait for it for ever."""
    answers = pair.call(spread.failure, folder, config)
    assert answers[0] == answers[1]
    assert answers[0][0].startswith("NonFiniteError: dynamics: 'shortcut' is nan at step 2;") and answers[0][1] == 2


@pytest.mark.parametrize("name", ["dynamics", "agent", "tokenizer", "filtered_bc"])
def test_bfloat16_is_close_to_float32_with_losses_in_float32(folder, alone, name):
    """Invariant 29."""
    half = prepared(None, folder, name, ParallelConfig(precision="bfloat16"))
    assert all(loss.dtype == torch.float32 for loss in half.contributions(0, Part()).values())
    plain, low = alone(name), updates(None, folder, name, ParallelConfig(precision="bfloat16"))
    assert 1e-5 < distance(low["rows"], plain["rows"]) < 0.1
    assert distance(low["weights"], plain["weights"]) < 0.01
    assert all(value.dtype == torch.float32 for value in low["weights"].values())


@pytest.mark.parametrize("config", [REPLICATE, FSDP], ids=["replicate", "fsdp"])
def test_bfloat16_in_two_processes_is_close_too(pair, folder, alone, config):
    """Sharded models are gathered in bfloat16, so the rounding is another one."""
    low = ParallelConfig(config.sharding, "bfloat16")
    for name in ("agent", "tokenizer"):
        first, _ = pair.call(updates, folder, name, low)
        assert 1e-5 < distance(first["rows"], alone(name)["rows"]) < 0.1
        assert all(value.dtype == torch.float32 for value in first["weights"].values())


def test_in_bfloat16_the_teachers_pass_takes_no_gradient_away(folder):
    """Cast weights that autocast remembers from the teacher would cut the student's layers off."""
    gradients = []
    for precision in ("float32", "bfloat16"):
        learner = prepared(None, folder, "dynamics", ParallelConfig(precision=precision))
        learner.step(0)
        gradients.append({name: p.grad for name, p in learner.module.named_parameters() if p.grad is not None})
    plain, low = gradients
    assert plain.keys() == low.keys()
    for name, gradient in plain.items():
        if gradient.norm() > 1e-3:
            assert torch.cosine_similarity(gradient.flatten(), low[name].flatten(), dim=0) > 0.95, name


@pytest.mark.parametrize("name", ["dynamics", "agent", "tokenizer"])
def test_activation_checkpointing_changes_no_bit(pair, folder, alone, name):
    config = ParallelConfig(activation_checkpointing=True)
    assert_equal(updates(None, folder, name, config), alone(name))
    sharded = ParallelConfig("fsdp", activation_checkpointing=True)
    assert_equal(pair.call(updates, folder, name, sharded)[0], pair.call(updates, folder, name, FSDP)[0])


def test_activation_checkpointing_computes_layers_twice(folder):
    calls = []
    for config in (REPLICATE, ParallelConfig(activation_checkpointing=True)):
        learner = prepared(None, folder, "tokenizer", config)
        layer, count = layers(learner.module)[0], []
        layer.attention.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        learner.step(0)
        calls.append(len(count))
    assert calls == [1, 2]


@pytest.mark.slow
def test_compiled_layers_learn_the_same(folder, alone):
    config = ParallelConfig(compile=True, activation_checkpointing=True)
    assert distance(updates(None, folder, "tokenizer", config, 1), alone("tokenizer", 1)) < 1e-4


def test_traced_layers_learn_the_same_in_two_processes(pair, folder, alone):
    """All of compiling but the compiler: teacher and student, sharded and recomputed layers."""
    config, name = ParallelConfig("fsdp", activation_checkpointing=True, compile=True), "dynamics of one length"
    first, _ = pair.call(spread.traced_updates, folder, name, config)
    assert distance(first, alone(name, 2)) < TOLERANCE


def test_applying_leaves_the_names_of_the_weights_alone(folder):
    plain = prepared(None, folder, "agent", REPLICATE).weights()
    changed = prepared(None, folder, "agent", ParallelConfig(activation_checkpointing=True, compile=True)).weights()
    assert list(plain) == list(changed)


def test_rows_that_are_not_shared_out_evenly_are_refused_with_the_numbers():
    check_batch("dynamics_training.batch", 12, 3, 2)
    with pytest.raises(ConfigError) as caught:
        check_batch("dynamics_training.batch", 16, 3, 2)
    words = ["dynamics_training.batch (16)", "resources.trainers (3)", "parallel.accumulate (2)"]
    assert all(word in str(caught.value) for word in words)


def test_at_least_one_pass_is_made():
    with pytest.raises(ConfigError, match=r"parallel\.accumulate.*0"):
        ParallelConfig(accumulate=0)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 3), (3, 2), (4, 4)])
def test_every_row_is_in_exactly_one_part(world, accumulate):
    config, seen = ParallelConfig(accumulate=accumulate), []
    for rank in range(world):
        parts = Parallel(config, rank, world).parts()
        assert len(parts) == accumulate
        seen += [row for part in parts for row in range(17)[part.rows(17).index]]
    assert sorted(seen) == list(range(17))
    shares = [p.rows(17).share for rank in range(world) for p in Parallel(config, rank, world).parts()]
    assert sum(shares) == pytest.approx(1) and max(shares) - min(shares) < 1.01 / 17


@pytest.mark.parametrize("count", [0, 1, 3, 4, 8])
def test_leading_rows_are_shared_out(count):
    """Every part takes equally many of its first rows, and these are all that lead the batch."""
    leading = {row for n in range(4) for row in range(8)[Rows(8, n, 4).index][: Rows(8, n, 4).leading(count)]}
    assert leading >= set(range(count)) and len(leading) < count + 4
    assert not leading or count


def test_gradients_travel_in_messages_of_limited_size(monkeypatch):
    monkeypatch.setattr("learners.parallel.BUCKET", 10)
    sizes = [4, 4, 4, 25, 1, 9]
    found = list(buckets([torch.zeros(size) for size in sizes]))
    assert [[t.numel() for t in bucket] for bucket in found] == [[4, 4], [4], [25], [1, 9]]
    assert all(sum(a.numel() for a in one) + two[0].numel() > 10 for one, two in pairwise(found))
