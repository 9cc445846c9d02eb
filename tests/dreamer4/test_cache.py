"""The cache of time layers: streaming equals one banded pass, and only commits change what is remembered."""

import pytest
import torch
from factories import normal, tiny_transformer
from torch import Tensor

from dreamer4.attention import rope_angles
from dreamer4.cache import TimeCache
from dreamer4.transformer import Transformer

SLOTS, WINDOW = 3, 4


def angles(model: Transformer) -> Tensor:
    return rope_angles(torch.arange(SLOTS), model.config.head_size, 10_000.0)


def past(model: Transformer, batch: int) -> TimeCache:
    return model.init_cache(batch, angles(model))


def run(model: Transformer, x: Tensor, **arguments) -> Tensor:
    with torch.no_grad():
        return model(x, angles(model), **arguments)


def model_of(time_layers: int, soft_cap: float | None = 50.0) -> Transformer:
    return tiny_transformer(depth=2 * time_layers, window=WINDOW, soft_cap=soft_cap)


def stream(model: Transformer, x: Tensor, chunks: list[int], segment_BT: Tensor | None = None) -> Tensor:
    cache, out, start = past(model, x.shape[0]), [], 0
    for length in chunks:
        own = None if segment_BT is None else segment_BT[:, start : start + length]
        own = None if own is None else own - segment_BT[:, max(start - 1, 0), None]
        out.append(run(model, x[:, start : start + length], segment_BT=own, cache=cache, commit=True))
        start += length
    assert start == x.shape[1]
    return torch.cat(out, dim=1)


def snapshot(cache: TimeCache) -> list[Tensor]:
    tensors = [*cache.keys, *cache.values, cache.valid_BC, cache.frame_BC, cache.position_B]
    return [tensor.clone() for tensor in tensors]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("time_layers", [1, 2, 3])
@pytest.mark.parametrize("soft_cap", [50.0, None])
@pytest.mark.parametrize("chunks", [[1] * 13, [5, 1, 1, 3, 3], [2, 11], [13]])
def test_streaming_equals_one_banded_pass(time_layers: int, soft_cap: float | None, chunks: list[int]):
    """Invariant 14: more than three windows, frame by frame and in chunks shorter and longer than the window."""
    model, x = model_of(time_layers, soft_cap), normal(2, 13, SLOTS, 16)
    assert (stream(model, x, chunks) - run(model, x)).abs().max() < 1e-5


@pytest.mark.parametrize("time_layers", [1, 2, 3])
def test_recomputing_the_last_window_is_another_thing_with_several_time_layers(time_layers: int):
    """Invariant 14, negative control: equality must hold for exactly one time layer."""
    model, x = model_of(time_layers), normal(2, 13, SLOTS, 16)
    recomputed = run(model, x[:, -WINDOW:])[:, -1]
    difference = (stream(model, x, [1] * 13)[:, -1] - recomputed).abs().max()
    assert (difference < 1e-5) if time_layers == 1 else (difference > 1e-2)


def test_the_frame_that_left_the_window_is_forgotten():
    model, x = model_of(1), normal(1, 9, SLOTS, 16)
    other = x.clone()
    other[:, :5] = normal(1, 5, SLOTS, 16, seed=1)
    before, after = (stream(model, frames, [1] * 9) for frames in (x, other))
    assert torch.equal(before[:, 8], after[:, 8])  # sees frames 5 to 8
    assert not torch.equal(before[:, 7], after[:, 7])  # sees frames 4 to 7


def test_only_a_commit_changes_the_cache():
    """Invariant 15."""
    model, x = model_of(2), normal(2, 8, SLOTS, 16)
    cache = past(model, 2)
    run(model, x[:, :6], cache=cache, commit=True)
    before = snapshot(cache)
    looked = run(model, x[:, 6:7], cache=cache)
    assert same(before, snapshot(cache))
    assert torch.equal(looked, run(model, x[:, 6:7], cache=cache, commit=True))
    assert not same(before, snapshot(cache))


def test_any_number_of_looks_leads_to_the_same_commit():
    """Invariant 15: 4 or 16 denoising passes before a commit leave identical caches."""
    model, x = model_of(2), normal(2, 8, SLOTS, 16)
    caches = [past(model, 2) for _ in range(2)]
    for cache, looks in zip(caches, (4, 16), strict=True):
        for t in range(8):
            for i in range(looks):
                run(model, normal(2, 1, SLOTS, 16, seed=i), cache=cache)
            run(model, x[:, t : t + 1], cache=cache, commit=True)
    assert same(snapshot(caches[0]), snapshot(caches[1]))


def test_a_reset_row_starts_anew_and_its_neighbour_goes_on():
    model, x = model_of(2), normal(2, 9, SLOTS, 16)
    cache = past(model, 2)
    run(model, x[:, :5], cache=cache, commit=True)
    cache.reset(torch.tensor([True, False]))
    rest = torch.cat([run(model, x[:, t : t + 1], cache=cache, commit=True) for t in range(5, 9)], dim=1)
    assert torch.allclose(rest[:1], run(model, x[:1, 5:]), atol=1e-5)
    assert torch.allclose(rest[1:], run(model, x[1:])[:, 5:], atol=1e-5)


@pytest.mark.parametrize("chunks", [[1] * 10, [3, 3, 4], [8, 2]])
def test_segments_hold_across_chunks(chunks: list[int]):
    """Segment 0 of a chunk continues what the cache holds, later ones are cut off from it."""
    segments = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]])
    model, x = model_of(2), normal(2, 10, SLOTS, 16)
    expected = run(model, x, segment_BT=segments)
    assert torch.allclose(stream(model, x, chunks, segments), expected, atol=1e-5)
    assert not torch.allclose(run(model, x), expected, atol=1e-2)


def test_a_clone_lives_its_own_life():
    model, x = model_of(1), normal(1, 6, SLOTS, 16)
    cache = past(model, 1)
    run(model, x[:, :4], cache=cache, commit=True)
    copy, before = cache.clone(), snapshot(cache)
    run(model, x[:, 4:], cache=copy, commit=True)
    assert same(before, snapshot(cache))
    assert copy.position_B.tolist() == [6]


def test_memory_does_not_grow_and_the_clock_never_resets():
    model = model_of(1)
    cache = past(model, 1)
    sizes = [tensor.shape for tensor in cache.keys]
    for _ in range(3 * WINDOW):
        run(model, normal(1, 1, SLOTS, 16), cache=cache, commit=True)
    assert [tensor.shape for tensor in cache.keys] == sizes
    assert cache.slots == WINDOW - 1
    assert cache.position_B.tolist() == [3 * WINDOW]
    assert sorted(cache.frame_BC[0].tolist()) == [9, 10, 11]


def test_streaming_under_autocast_equals_the_batch_under_autocast():
    model, x = model_of(2), normal(2, 9, SLOTS, 16)
    with torch.autocast("cpu", torch.bfloat16):
        difference = (stream(model, x, [1] * 9) - run(model, x)).abs().max()
    assert difference < 0.1


def test_rows_are_as_good_as_new_after_a_reset():
    """A row that starts anew computes the bits of a fresh stream of its own, whatever its neighbour has seen."""
    model, x = model_of(2), normal(2, 9, SLOTS, 16)
    old, new = past(model, 2), past(model, 2)
    run(model, x[:, :5], cache=old, commit=True)
    old.reset(torch.tensor([True, True]))
    for t in range(5, 9):
        outputs = [run(model, x[:, t : t + 1], cache=cache, commit=True) for cache in (old, new)]
        assert torch.allclose(*outputs, atol=1e-6)
    assert torch.equal(old.position_B, new.position_B)


def test_rows_have_clocks_of_their_own():
    """Rows that began at different times, one of them far along, each compute what they would alone."""
    model, x = model_of(2), normal(2, 12, SLOTS, 16)
    cache = past(model, 2)
    for t in range(12):
        cache.reset(torch.tensor([t == 7, t == 2]))
        out = run(model, x[:, t : t + 1], cache=cache, commit=True)
    assert cache.position_B.tolist() == [5, 10]
    assert torch.allclose(out[:1, -1], run(model, x[:1, 7:])[:, -1], atol=1e-5)
    assert torch.allclose(out[1:, -1], run(model, x[1:, 2:])[:, -1], atol=1e-5)


@pytest.mark.parametrize("soft_cap", [50.0, None])
def test_static_shapes_change_nothing_but_the_places_that_are_masked(soft_cap: float | None):
    """What a recording needs: places without a frame are read from the first frame on, and count for nothing."""
    model, x = model_of(2, soft_cap), normal(2, 9, SLOTS, 16)
    cache, out = past(model, 2), []
    cache.static = True
    for t in range(9):
        out.append(run(model, x[:, t : t + 1], cache=cache, commit=True))
    assert torch.allclose(torch.cat(out, dim=1), run(model, x), atol=1e-5)


def test_only_the_wanted_slots_come_out_and_all_are_remembered():
    model, x = model_of(2), normal(2, 6, SLOTS, 16)
    whole, part = past(model, 2), past(model, 2)
    for t in range(6):
        frame = x[:, t : t + 1]
        looked = run(model, frame, cache=part, wanted=slice(1, 2))
        expected = run(model, frame, cache=whole, commit=True)
        assert torch.allclose(looked, expected[:, :, 1:2], atol=1e-6)
        assert torch.allclose(
            run(model, frame, cache=part, commit=True, wanted=slice(2, 3)), expected[:, :, 2:], atol=1e-6
        )
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(whole.keys, part.keys, strict=True))


def test_sight_is_a_mask():
    """Slots that see less than others are computed apart; the control sees what they don't."""
    model, x = model_of(1), normal(1, 3, SLOTS, 16)
    sight = [(slice(0, 2), slice(0, 2)), (slice(2, 3), slice(0, 3))]
    mask = torch.tensor([[True, True, False], [True, True, False], [True, True, True]])
    streamed = run(model, x, cache=past(model, 1), sight=sight)
    assert torch.allclose(streamed, run(model, x, space_mask_SS=mask), atol=1e-5)
    assert not torch.allclose(streamed, run(model, x), atol=1e-2)
