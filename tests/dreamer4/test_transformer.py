"""The block-causal transformer: who sees whom, and the arithmetic of one attention against plain loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import changed, frames_that_differ, lively, normal, tiny_transformer
from torch import Tensor

from dreamer4.attention import Rotation, attend, axial_angles, banded_mask, rope_angles
from dreamer4.errors import ConfigError
from dreamer4.tokenizer import LATENT, decoder_mask, encoder_mask
from dreamer4.transformer import (
    Attention,
    RMSNorm,
    SpaceLayer,
    TimeLayer,
    Transformer,
    TransformerConfig,
    initialise_linears,
    learned_tokens,
    parameter_count,
)

SLOTS = 5


def slot_angles(slots: int = SLOTS, head_size: int = 8) -> Tensor:
    return rope_angles(torch.arange(slots), head_size, 10_000.0)


def run(model: Transformer, x: Tensor, **arguments) -> Tensor:
    with torch.no_grad():
        return model(x, slot_angles(x.shape[2], model.config.head_size), **arguments)


def without_time(model: Transformer) -> Transformer:
    for layer in model.layers:
        if isinstance(layer, TimeLayer):
            layer.forward = lambda x, *_: x
    return model


# Time


@pytest.mark.parametrize("soft_cap", [50.0, None])
def test_a_frame_changes_itself_and_later_frames_only(soft_cap: float | None):
    """Invariant 1, for the stack itself."""
    model, x = tiny_transformer(soft_cap=soft_cap, window=8), normal(2, 6, SLOTS, 16)
    before = run(model, x)
    for t in range(6):
        assert frames_that_differ(before, run(model, changed(x, slice(None), t))) == list(range(t, 6))


@pytest.mark.parametrize("time_layers", [1, 2, 3])
@pytest.mark.parametrize("window", [2, 4])
def test_the_reach_is_window_minus_one_frames_per_time_layer(time_layers: int, window: int):
    """Invariant 3."""
    model = tiny_transformer(depth=2 * time_layers, window=window).double()
    reach = time_layers * (window - 1)
    assert model.config.reach == reach
    x = normal(1, reach + 4, SLOTS, 16, dtype=torch.float64)
    touched = frames_that_differ(run(model, x), run(model, changed(x, 0, 1, 2)))
    assert touched == list(range(1, reach + 2))


def test_every_fourth_layer_is_a_time_layer():
    """Invariant 4."""
    model = Transformer(TransformerConfig(width=16, depth=8, heads=2, kv_heads=1, hidden=16, time_every=4))
    kinds = [type(layer) for layer in model.layers]
    assert kinds == 2 * [SpaceLayer, SpaceLayer, SpaceLayer, TimeLayer]
    assert model.config.time_layers == 2


def test_frames_are_independent_without_time_layers():
    """Invariants 4 and 5, with the unchanged model as negative control."""
    model, x = tiny_transformer(depth=4), normal(2, 5, SLOTS, 16)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert not torch.allclose(run(model, x)[:, order], run(model, x[:, order]), atol=1e-3)
    without_time(model)
    assert frames_that_differ(run(model, x), run(model, changed(x, 0, 2))) == [2]
    assert torch.allclose(run(model, x)[:, order], run(model, x[:, order]), atol=1e-6)


def test_a_time_layer_connects_a_slot_with_itself_only():
    model, x = tiny_transformer(depth=1, time_every=1), normal(1, 4, SLOTS, 16)
    before, after = run(model, x), run(model, changed(x, 0, 0, 2))
    assert (before != after).any(-1).any(1)[0].tolist() == [False, False, True, False, False]


def test_frames_of_another_segment_are_unseen():
    model, x = tiny_transformer(window=8), normal(1, 6, SLOTS, 16)
    segments = torch.tensor([[0, 0, 1, 1, 1, 2]])
    before = run(model, x, segment_BT=segments)
    assert frames_that_differ(before, run(model, changed(x, 0, 0), segment_BT=segments)) == [0, 1]
    assert frames_that_differ(before, run(model, changed(x, 0, 3), segment_BT=segments)) == [3, 4]
    assert torch.allclose(before[:, 2:5], run(model, x[:, 2:5]), atol=1e-5)


def test_image_rows_are_as_if_every_frame_were_alone():
    """Invariant 31: rows of separate images, beside a row of video that keeps its context."""
    model, x = tiny_transformer(depth=4), normal(2, 5, SLOTS, 16)
    segments = torch.stack([torch.arange(5), torch.zeros(5, dtype=torch.long)])
    out = run(model, x, segment_BT=segments)
    alone = torch.cat([run(model, x[:1, t : t + 1]) for t in range(5)], dim=1)
    assert torch.allclose(out[:1], alone, atol=1e-5)
    assert torch.allclose(out[1:], run(model, x[1:]), atol=1e-5)
    assert not torch.allclose(run(model, x[:1]), alone, atol=1e-2)


def test_banded_mask_shows_the_last_frames_of_the_own_segment():
    segments = torch.tensor([[0, 0, 0, 1, 1]])
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert banded_mask(segments, 5, 2, torch.device("cpu"))[0].int().tolist() == expected


def test_drafts_are_seen_by_themselves_only():
    """Frames, then their drafts: a draft sees what its frame sees, and itself instead of that frame."""
    expected = [
        *([1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]),
        *([0, 0, 0, 1, 0, 0], [1, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]),
    ]
    segments = torch.tensor([[0, 0, 1, 0, 0, 1]])
    assert banded_mask(segments, 6, 2, torch.device("cpu"), drafts=True)[0].int().tolist() == expected


# Space


def slots_that_change(mask: Tensor, slot: int) -> list[int]:
    """Slots of any frame's output that notice a change of one slot, in a stack of two space and two time layers."""
    model, x = tiny_transformer(depth=4), normal(1, 3, len(mask), 16)
    before, after = run(model, x, space_mask_SS=mask), run(model, changed(x, 0, 0, slot), space_mask_SS=mask)
    return (before != after).any(-1).any(1)[0].nonzero().flatten().tolist()


MODALITIES = torch.tensor([0, 0, 1, 1, LATENT, LATENT])  # two patches, two numbers of proprioception, two latents


def test_encoder_mask_is_the_papers_table():
    """Invariant 8: latents read everything, tokens of a modality read that modality only."""
    rows = ["110000", "110000", "001100", "001100", "111111", "111111"]
    assert encoder_mask(MODALITIES).int().tolist() == [[int(c) for c in row] for row in rows]


def test_decoder_mask_is_the_papers_table():
    """Invariant 8: latents read latents only, tokens of a modality read that modality and the latents."""
    rows = ["110011", "110011", "001111", "001111", "000011", "000011"]
    assert decoder_mask(MODALITIES).int().tolist() == [[int(c) for c in row] for row in rows]


def test_encoder_rules_hold_through_all_layers():
    """Invariant 8, by perturbation."""
    mask = encoder_mask(MODALITIES)
    assert slots_that_change(mask, 0) == [0, 1, 4, 5]
    assert slots_that_change(mask, 3) == [2, 3, 4, 5]
    assert slots_that_change(mask, 4) == [4, 5]


def test_decoder_rules_hold_through_all_layers():
    """Invariant 8, by perturbation."""
    mask = decoder_mask(MODALITIES)
    assert slots_that_change(mask, 0) == [0, 1]
    assert slots_that_change(mask, 2) == [2, 3]
    assert slots_that_change(mask, 5) == [0, 1, 2, 3, 4, 5]


# Attention


def attention_in_loops(layer: Attention, x_LM: np.ndarray, angles_LK: np.ndarray, seen_LL: np.ndarray) -> np.ndarray:
    """The same attention for one sequence, one query, head and key at a time, in float64."""
    config, weights = layer.config, {n: p.detach().double().numpy() for n, p in layer.named_parameters()}
    size, half = config.head_size, config.head_size // 2
    q_all, k_all, v_all = np.split(x_LM @ weights["qkv.weight"].T, np.cumsum(layer.sizes)[:-1], axis=-1)

    def turned(vector: np.ndarray, gain: np.ndarray, angles: np.ndarray) -> np.ndarray:
        vector = vector / math.sqrt((vector**2).mean() + 1e-6) * gain
        pairs = (vector[:half] + 1j * vector[half:]) * np.exp(1j * angles)
        return np.concatenate([pairs.real, pairs.imag])

    out = np.zeros_like(x_LM)
    for head in range(config.heads):
        own, shared = head * size, head // (config.heads // config.kv_heads) * size
        for i in range(len(x_LM)):
            query = turned(q_all[i, own : own + size], weights["q_norm.gain"], angles_LK[i])
            scores, values = [], []
            for j in np.flatnonzero(seen_LL[i]):
                key = turned(k_all[j, shared : shared + size], weights["k_norm.gain"], angles_LK[j])
                score = query @ key / math.sqrt(size)
                scores.append(
                    score if config.soft_cap is None else config.soft_cap * math.tanh(score / config.soft_cap)
                )
                values.append(v_all[j, shared : shared + size])
            p = np.exp(np.array(scores) - max(scores))
            out[i, own : own + size] = (p / p.sum()) @ np.array(values)
    return out @ weights["out.weight"].T


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("soft_cap", [0.7, None])
def test_attention_equals_plain_loops(kv_heads: int, soft_cap: float | None):
    """Grouped heads, QKNorm, rotary positions, cap before mask: against an independent implementation."""
    config = TransformerConfig(width=32, heads=4, kv_heads=kv_heads, hidden=8, soft_cap=soft_cap)
    layer, x = lively(Attention(config)).double(), normal(2, 6, 32, dtype=torch.float64)
    angles = rope_angles(torch.tensor([3, 4, 9, 10, 11, 40]), config.head_size, 10_000.0)
    seen = banded_mask(None, 6, 4, torch.device("cpu"))[0]
    out = layer(x, Rotation(angles, torch.float64), seen).detach().numpy()
    for row in range(2):
        expected = attention_in_loops(layer, x[row].numpy(), angles.numpy(), seen.numpy())
        np.testing.assert_allclose(out[row], expected, atol=1e-12)


@pytest.mark.parametrize("mask", ["none", "space", "time"])
def test_the_cap_at_infinity_equals_the_fused_kernel(mask: str):
    """Invariant 11, for every form of mask that the stack uses, with grouped heads."""
    q, k, v = normal(2, 3, 4, 5, 8), normal(2, 3, 2, 5, 8, seed=1), normal(2, 3, 2, 5, 8, seed=2)
    seen = {
        "none": None,
        "space": torch.rand(5, 5, generator=torch.Generator().manual_seed(0)) > 0.4,
        "time": banded_mask(torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 1, 2]]), 5, 2, torch.device("cpu"))[:, None, None],
    }[mask]
    if mask == "space":
        seen.fill_diagonal_(True)
    assert torch.allclose(attend(q, k, v, seen, 1e4), attend(q, k, v, seen, None), atol=1e-5)
    assert not torch.allclose(attend(q, k, v, seen, 0.1), attend(q, k, v, seen, None), atol=1e-2)


def test_as_many_key_heads_as_heads_is_multi_head_attention():
    """Invariant 9."""
    q, k, v = (normal(3, 4, 6, 8, seed=i) for i in range(3))
    assert torch.allclose(attend(q, k, v, None, 1e4), F.scaled_dot_product_attention(q, k, v), atol=1e-5)


@pytest.mark.parametrize("soft_cap", [50.0, None])
def test_grouped_heads_equal_repeated_key_heads(soft_cap: float | None):
    """Invariant 9."""
    q, k, v = normal(3, 6, 5, 8), normal(3, 2, 5, 8, seed=1), normal(3, 2, 5, 8, seed=2)
    repeated = [x.repeat_interleave(3, dim=1) for x in (k, v)]
    assert torch.allclose(attend(q, k, v, None, soft_cap), attend(q, *repeated, None, soft_cap), atol=1e-6)


@pytest.mark.parametrize("part", ["queries", "keys", "values"])
def test_attention_ignores_the_scale_of_queries_and_keys(part: str):
    """Invariant 10, with the values as negative control."""
    config = TransformerConfig(width=32, heads=4, kv_heads=2, hidden=8)
    layer, x = lively(Attention(config)), normal(2, 6, 32)
    rotate, start = Rotation(slot_angles(6), torch.float32), {"queries": 0, "keys": 32, "values": 48}[part]
    before = layer(x, rotate, None)
    with torch.no_grad():
        layer.qkv.weight[start : start + 16] *= 7.5
    assert torch.allclose(before, layer(x, rotate, None), atol=1e-4) == (part != "values")


def test_logits_are_bounded_by_the_gains():
    """Invariant 10: at most sqrt(head size) times the largest gains, however large the input."""
    config = TransformerConfig(width=32, heads=4, kv_heads=2, hidden=8)
    layer = lively(Attention(config))
    q, k, _ = layer.project(1e4 * normal(2, 6, 32), Rotation(slot_angles(6), torch.float32))
    logits = q @ k.repeat_interleave(2, dim=1).transpose(-2, -1) * config.head_size**-0.5
    bound = math.sqrt(config.head_size) * layer.q_norm.gain.abs().max() * layer.k_norm.gain.abs().max()
    assert 0.1 * bound < logits.abs().max() <= bound * 1.0001


def test_no_logit_exceeds_the_cap():
    """Invariant 11: two keys differ by at most twice the cap, so their weights by a factor of exp(2 cap)."""
    q, k = torch.full((1, 1, 4), 100.0), torch.tensor([[[100.0] * 4, [-100.0] * 4]])
    v = torch.tensor([[[1.0, 0, 0, 0], [0, 1.0, 0, 0]]])
    weights = attend(q, k, v, None, soft_cap=1.5)[0, 0]
    assert weights[0] / weights[1] == pytest.approx(math.exp(3.0), rel=1e-4)


def test_masked_entries_stay_masked_after_capping():
    """Invariant 11; the negative control caps after the mask, which turns minus infinity into minus the cap."""
    q, k, v = normal(1, 1, 4), normal(1, 2, 4, seed=1), torch.tensor([[[1.0] * 4, [1e6] * 4]])
    seen = torch.tensor([[True, False]])
    assert torch.equal(attend(q, k, v, seen, soft_cap=2.0), torch.ones(1, 1, 4))
    logits = (q @ k.transpose(-2, -1) / 2).masked_fill(~seen, float("-inf"))
    assert ((2.0 * torch.tanh(logits / 2.0)).softmax(-1) @ v > 1e3).all()


# Positions


@pytest.mark.parametrize("shift", [1, 1_000, 1_000_000])
def test_rotated_products_depend_on_the_difference_of_positions_only(shift: int):
    """Invariant 12."""
    q, k = normal(7, 8), normal(7, 8, seed=1)

    def products(start: int) -> Tensor:
        rotate = Rotation(rope_angles(torch.arange(start, start + 7), 8, 10_000.0), torch.float32)
        return rotate(q) @ rotate(k).T

    assert torch.allclose(products(0), products(shift), atol=1e-5)
    assert not torch.allclose(products(0), q @ k.T, atol=0.1)


def test_two_dimensional_positions_turn_rows_and_columns_apart():
    q, k = normal(1, 8), normal(1, 8, seed=1)

    def product(row: int, column: int, key_row: int, key_column: int) -> float:
        at = torch.tensor
        turn_q, turn_k = (
            Rotation(axial_angles(at([r]), at([c]), 8, 10_000.0), torch.float32)
            for r, c in ((row, column), (key_row, key_column))
        )
        return (turn_q(q) @ turn_k(k).T).item()

    assert product(2, 5, 1, 3) == pytest.approx(product(12, 25, 11, 23), abs=1e-5)
    assert product(2, 5, 1, 3) != pytest.approx(product(5, 2, 3, 1), abs=1e-2)


def test_outputs_depend_on_distances_in_time_not_on_the_clock():
    """Invariant 12: a cache whose clock is at 1000 moves all frame numbers."""
    model, x = tiny_transformer(depth=4), normal(1, 6, SLOTS, 16)
    late = model.init_cache(1, slot_angles())
    late.position_B += 1000
    assert torch.allclose(run(model, x), run(model, x, cache=late), atol=1e-4)


# Numbers


def test_autocast_stays_near_fp32_and_keeps_the_residual_stream_in_fp32():
    model, x = tiny_transformer(depth=4), normal(2, 5, SLOTS, 16)
    expected = run(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        out = run(model, x)
    assert out.dtype == torch.float32
    assert 0 < (out - expected).abs().max() < 0.1


def test_rms_norm_of_half_precision_is_computed_in_fp32():
    norm, x = lively(RMSNorm(64)), (300 * normal(4, 64)).bfloat16()
    expected = (x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()) * norm.gain.double()
    out = norm(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected.to(torch.bfloat16)) or torch.allclose(out.double(), expected, rtol=2**-8)


def test_learned_tokens_are_never_zero():
    """Paper.md 20.E: RMSNorm of a zero vector has unbounded gradients."""
    assert learned_tokens(3, 16).abs().max(dim=-1).values.min() > 1e-3


def test_linear_layers_start_with_variance_one_over_inputs():
    linear = torch.nn.Linear(400, 300)
    initialise_linears(linear)
    assert linear.weight.std().item() == pytest.approx(400**-0.5, rel=0.05)
    assert linear.bias.abs().max() == 0


def test_every_parameter_gets_a_gradient():
    model = tiny_transformer(depth=4)
    model(normal(2, 5, SLOTS, 16), slot_angles()).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    assert parameter_count([model]) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 30}, r"width 30 must be a multiple of 4 x heads \(4\)"),
        ({"width": 24}, r"width 24 must be a multiple of 4 x heads \(4\)"),
        ({"kv_heads": 3}, r"heads \(4\) must be a multiple of kv_heads \(3\)"),
        ({"depth": 6}, r"depth \(6\) must be a multiple of time_every \(4\)"),
        ({"window": 1}, "window must be at least 2 frames, got 1"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, int], message: str):
    with pytest.raises(ConfigError, match=message):
        TransformerConfig(**changes)


@pytest.mark.parametrize("name", ["width", "depth", "heads", "kv_heads", "hidden", "time_every"])
def test_sizes_below_one_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        TransformerConfig(**{name: 0})
