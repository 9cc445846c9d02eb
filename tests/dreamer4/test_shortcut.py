"""Shortcut forcing: levels, targets against plain loops, losses, and the sampler."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from factories import normal
from torch import Tensor, nn

from dreamer4.errors import ConfigError
from dreamer4.rng import generator
from dreamer4.shortcut import (
    Levels,
    ShortcutConfig,
    bootstrapped_rows,
    corrupt,
    sample_frame,
    sample_levels,
    shortcut_error,
    shortcut_targets,
)

K_MAX = 8
FINEST = 3


def levels_of(tau_idx: list[int], step_idx: list[int]) -> Levels:
    return Levels(torch.tensor([tau_idx]), torch.tensor([step_idx]), K_MAX)


def all_levels() -> Levels:
    """Every pair of level and step that training can produce, in one sequence."""
    pairs = [(j * K_MAX >> e, e) for e in range(FINEST + 1) for j in range(1 << e)]
    return levels_of([tau for tau, _ in pairs], [step for _, step in pairs])


# Levels


def test_every_step_size_is_equally_likely():
    """Invariant 21: chi-squared of seven classes, 6 degrees of freedom; 22.5 is the 0.1 % tail."""
    levels = sample_levels(ShortcutConfig(), 200, 200, generator("steps"))
    counts = np.bincount(levels.step_idx.flatten().numpy(), minlength=7)
    assert counts.shape == (7,)
    assert ((counts - 40_000 / 7) ** 2 / (40_000 / 7)).sum() < 22.5


def test_levels_are_on_the_grid_of_their_step_and_reach_all_of_it():
    """Invariant 21: tau is a multiple of d, tau + d <= 1, tau < 1."""
    levels = sample_levels(ShortcutConfig(), 200, 200, generator("levels"))
    for e in range(7):
        found = levels.tau_idx[levels.step_idx == e].unique()
        assert found.tolist() == list(range(0, 64, 64 >> e))
    assert (levels.tau + levels.step <= 1).all()


def test_levels_have_the_papers_marginals():
    """Invariant 21: P(tau = 0) = 0.2835, E[tau] = 0.3583, E[0.9 tau + 0.1] = 0.4224, P(finest) = 1/7."""
    levels = sample_levels(ShortcutConfig(), 300, 300, generator("marginals"))
    assert (levels.tau_idx == 0).float().mean().item() == pytest.approx(0.2835, abs=0.006)
    assert levels.tau.mean().item() == pytest.approx(0.3583, abs=0.004)
    assert (0.9 * levels.tau + 0.1).mean().item() == pytest.approx(0.4224, abs=0.004)
    assert (levels.step_idx == 6).float().mean().item() == pytest.approx(1 / 7, abs=0.005)


def test_levels_are_independent_of_neighbours_in_time_and_batch():
    """Invariant 21."""
    levels = sample_levels(ShortcutConfig(), 300, 300, generator("independence"))
    for values in (levels.tau, levels.step_idx.float()):
        frames = torch.stack([values[:, :-1].flatten(), values[:, 1:].flatten()])
        rows = torch.stack([values[:-1].flatten(), values[1:].flatten()])
        assert abs(torch.corrcoef(frames)[0, 1].item()) < 0.02
        assert abs(torch.corrcoef(rows)[0, 1].item()) < 0.02


def test_levels_are_a_function_of_the_generator():
    first, second = (sample_levels(ShortcutConfig(), 3, 5, generator("same")) for _ in range(2))
    assert torch.equal(first.tau_idx, second.tau_idx)
    assert torch.equal(first.step_idx, second.step_idx)


def test_rows_for_the_teacher_come_first_and_the_others_take_the_finest_step():
    config = ShortcutConfig(bootstrap_rows=0.25)
    levels, rows = sample_levels(config, 40, 50, generator("rows")), bootstrapped_rows(config, 40)
    assert rows == slice(10)
    assert (levels.step_idx[rows] < 6).all()
    assert levels.step_idx[rows].unique().tolist() == [0, 1, 2, 3, 4, 5]
    assert (levels.step_idx[10:] == 6).all()
    assert (levels.tau_idx % (64 >> levels.step_idx) == 0).all()
    assert bootstrapped_rows(ShortcutConfig(), 40) == slice(40)


def test_frames_at_the_contexts_level_take_the_finest_step():
    config = ShortcutConfig(context_share=0.3, pure_noise=0.5)
    levels = sample_levels(config, 200, 200, generator("context"))
    in_context = (levels.tau_idx == config.context_idx) & (levels.step_idx == config.finest)
    assert in_context.float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert (levels.tau_idx[~in_context] == 0).float().mean().item() == pytest.approx(0.5 + 0.5 * 0.2835, abs=0.01)
    assert (levels.tau_idx % (64 >> levels.step_idx) == 0).all()


@pytest.mark.parametrize(("k_max", "noise", "index"), [(64, 0.1, 58), (8, 0.125, 7), (8, 0.01, 7), (8, 0.99, 1)])
def test_the_contexts_level_is_on_the_trained_grid(k_max: int, noise: float, index: int):
    """Invariant 18: never the untrained tau = 1."""
    assert ShortcutConfig(k_max=k_max, context_noise=noise).context_idx == index


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k_max": 48}, "k_max must be a power of two of at least 2, got 48"),
        ({"k_max": 1}, "k_max must be a power of two of at least 2, got 1"),
        ({"context_noise": 0.0}, r"context_noise must be in \(0, 1\), got 0.0"),
        ({"context_noise": 1.0}, r"context_noise must be in \(0, 1\), got 1.0"),
    ],
)
def test_impossible_objectives_are_refused(changes: dict[str, float], message: str):
    with pytest.raises(ConfigError, match=message):
        ShortcutConfig(**changes)


# Corruption


def test_corruption_goes_from_noise_to_clean():
    """Invariant 22."""
    clean, noise = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1)
    tau = torch.tensor([[0.0, 1.0, 0.25], [0.5, 0.0, 1.0]])
    noised = corrupt(clean, noise, tau)
    assert torch.equal(noised[0, 0], noise[0, 0]) and torch.equal(noised[1, 1], noise[1, 1])
    assert torch.equal(noised[0, 1], clean[0, 1])
    assert torch.allclose(noised[0, 2], 0.75 * noise[0, 2] + 0.25 * clean[0, 2])


@pytest.mark.parametrize("tau", [0.0, 0.25, 0.875])
def test_corruption_has_the_expected_mean_and_variance(tau: float):
    """Invariant 22: mean tau z, variance (1 - tau)^2."""
    noised = corrupt(torch.full((1, 1, 200, 200), 0.6), normal(1, 1, 200, 200), torch.tensor([[tau]]))
    assert noised.mean().item() == pytest.approx(tau * 0.6, abs=0.02)
    assert noised.var().item() == pytest.approx((1 - tau) ** 2, rel=0.03)


# Targets


class Mixer(nn.Module):
    """A hand-written denoiser that mixes neighbouring frames and reads level and step."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.own = nn.Parameter(torch.tensor(0.6, dtype=dtype))

    def forward(self, z: Tensor, tau_idx: Tensor, step_idx: Tensor) -> Tensor:
        before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], dim=1)
        bias = (0.3 * tau_idx.to(z.dtype) - 0.2 * step_idx.to(z.dtype))[..., None, None]
        return torch.tanh(self.own * z + 0.8 * before + bias)


def mixer_in_numpy(z: np.ndarray, tau_idx: list[int], step_idx: list[int]) -> np.ndarray:
    out = np.zeros_like(z)
    for t in range(len(z)):
        before = z[t - 1] if t else 0 * z[0]
        out[t] = np.tanh(0.6 * z[t] + 0.8 * before + 0.3 * tau_idx[t] - 0.2 * step_idx[t])
    return out


def loss_in_numpy(clean: np.ndarray, noised: np.ndarray, levels: Levels, mistake: str = "") -> np.ndarray:
    """Equation 7 for one sequence `[T, S, D]`, frame by frame in float64, as it is printed: `[T]`."""
    tau_idx, step_idx = levels.tau_idx[0].tolist(), levels.step_idx[0].tolist()
    frames = range(len(clean))
    tau, d = [i / K_MAX for i in tau_idx], [2.0**-e for e in step_idx]
    half_idx = [min(e + 1, FINEST) for e in step_idx]
    student = mixer_in_numpy(noised, tau_idx, step_idx)
    first = mixer_in_numpy(noised, tau_idx, half_idx)
    middle, middle_idx = noised.copy(), list(tau_idx)
    for t in frames:
        if step_idx[t] < FINEST:
            middle[t] = noised[t] + (first[t] - noised[t]) / (1 - tau[t]) * d[t] / 2
            middle_idx[t] = int((tau[t] + d[t] / 2) * K_MAX)
    if mistake == "stale context":
        second = np.stack(
            [mixer_in_numpy(np.concatenate([noised[:t], middle[t : t + 1]]), middle_idx, half_idx)[t] for t in frames]
        )
    else:
        second = mixer_in_numpy(middle, middle_idx, half_idx)
    loss = np.zeros(len(clean))
    for t in frames:
        if step_idx[t] == FINEST:
            loss[t] = ((student[t] - clean[t]) ** 2).mean()
            continue
        b1 = (first[t] - noised[t]) / (1 - tau[t])
        b2 = (second[t] - middle[t]) / (1 - tau[t] - d[t] / 2)
        velocity = (b1 + b2) / 2
        if mistake == "average of x":
            velocity = ((first[t] + second[t]) / 2 - noised[t]) / (1 - tau[t])
        scale = 1 if mistake == "no scale" else (1 - tau[t]) ** 2
        loss[t] = scale * (((student[t] - noised[t]) / (1 - tau[t]) - velocity) ** 2).mean()
    return loss


def losses(
    denoiser: Callable[..., Tensor], clean: Tensor, noised: Tensor, levels: Levels, ramp: bool = False
) -> Tensor:
    target = shortcut_targets(denoiser, clean, noised, levels)
    return shortcut_error(denoiser(noised, levels.tau_idx, levels.step_idx), target, levels, ramp)


def sequence(levels: Levels) -> tuple[Tensor, Tensor]:
    shape = (*levels.tau_idx.shape, 3, 4)
    clean = torch.tanh(normal(*shape))
    return clean, corrupt(clean, normal(*shape, seed=1), levels.tau)


def test_the_loss_is_equation_seven():
    """Invariants 23 and 24: all pairs of level and step in one sequence, against plain loops."""
    levels = all_levels()
    clean, noised = sequence(levels)
    expected = loss_in_numpy(clean[0].double().numpy(), noised[0].double().numpy(), levels)
    np.testing.assert_allclose(losses(Mixer(), clean, noised, levels).detach().numpy()[0], expected, rtol=1e-4)


@pytest.mark.parametrize("mistake", ["average of x", "no scale", "stale context"])
def test_other_readings_of_equation_seven_are_told_apart(mistake: str):
    """Invariant 23, negative controls."""
    levels = all_levels()
    clean, noised = sequence(levels)
    numpy = (clean[0].double().numpy(), noised[0].double().numpy())
    wrong = loss_in_numpy(*numpy, levels, mistake)
    assert np.abs(wrong / loss_in_numpy(*numpy, levels) - 1).max() > 0.05
    assert not np.allclose(losses(Mixer(), clean, noised, levels).detach().numpy()[0], wrong, rtol=1e-2)


def test_the_three_forms_of_the_loss_are_one():
    """Invariant 24: velocity form, x-form, and the form with the end point of both half steps, in float64."""
    tau, d = torch.tensor(0.25, dtype=torch.float64), 0.5
    z, x1, x2, student = (normal(20, seed=i, dtype=torch.float64) for i in range(4))
    b1 = (x1 - z) / (1 - tau)
    middle = z + b1 * d / 2
    b2 = (x2 - middle) / (1 - tau - d / 2)
    end = middle + b2 * d / 2
    velocity_form = (1 - tau) ** 2 * ((student - z) / (1 - tau) - (b1 + b2) / 2).square()
    x_form = (student - (z + (1 - tau) * (b1 + b2) / 2)).square()
    end_form = (student - (z + (1 - tau) * (end - z) / d)).square()
    assert torch.allclose(velocity_form, x_form, rtol=1e-6) and torch.allclose(x_form, end_form, rtol=1e-6)

    answers = iter([x1, x2])
    target = shortcut_targets(
        lambda *_: next(answers)[None, None, None].float(),
        torch.zeros(1, 1, 1, 20),
        z[None, None, None].float(),
        Levels(torch.tensor([[2]]), torch.tensor([[1]]), K_MAX),
    )
    assert torch.allclose(target.flatten().double(), z + (1 - tau) * (b1 + b2) / 2, atol=1e-5)


def test_a_step_that_ends_at_clean_has_the_second_prediction_as_target():
    """Invariant 24."""
    levels, calls = levels_of([0, 4, 6], [0, 1, 2]), []

    def teacher(z: Tensor, tau_idx: Tensor, step_idx: Tensor) -> Tensor:
        calls.append((Mixer()(z, tau_idx, step_idx), tau_idx.tolist(), step_idx.tolist()))
        return calls[-1][0]

    clean, noised = sequence(levels)
    target = shortcut_targets(teacher, clean, noised, levels)
    assert torch.allclose(target, calls[1][0], atol=1e-6)
    assert [(tau, step) for _, tau, step in calls] == [([[0, 4, 6]], [[1, 2, 3]]), ([[4, 6, 7]], [[1, 2, 3]])]


def test_frames_with_the_finest_step_do_not_move_in_the_teachers_passes():
    levels, calls = levels_of([3, 0], [3, 0]), []

    def teacher(z: Tensor, tau_idx: Tensor, step_idx: Tensor) -> Tensor:
        calls.append((z[:, 0], tau_idx[0, 0].item(), step_idx[0, 0].item()))
        return torch.zeros_like(z)

    clean, noised = sequence(levels)
    shortcut_targets(teacher, clean, noised, levels)
    assert torch.equal(calls[0][0], calls[1][0])
    assert [call[1:] for call in calls] == [(3, 3), (3, 3)]


def test_an_exact_flow_has_no_bootstrap_loss_and_samples_alike_in_any_number_of_steps():
    """Invariant 25: a denoiser that predicts the same x for all inputs."""
    levels = all_levels()
    clean, noised = sequence(levels)
    exact = torch.tanh(normal(*clean.shape, seed=2))
    error = losses(lambda *_: exact, clean, noised, levels)
    bootstrapped = levels.step_idx < FINEST
    assert error[bootstrapped].max() < 1e-10
    assert error[~bootstrapped].min() > 1e-2
    samples = [sample_frame(lambda *_: exact[:, :1], noised[:, :1], steps, K_MAX) for steps in (1, 2, 4, 8)]
    assert all(torch.equal(sample, exact[:, :1]) for sample in samples)


def test_no_gradient_flows_through_the_targets():
    """Invariants 23 and 26: equal to the gradient with constant targets; without stop-gradient it is another one."""
    levels = all_levels()
    clean, noised = sequence(levels)

    def gradient(target: Tensor, mixer: Mixer) -> Tensor:
        error = shortcut_error(mixer(noised, levels.tau_idx, levels.step_idx), target, levels, ramp=True)
        return torch.autograd.grad(error.sum(), mixer.own)[0]

    mixer = Mixer()
    target = shortcut_targets(mixer, clean, noised, levels)
    assert target.grad_fn is None and not target.requires_grad
    constant = target.clone()
    assert torch.equal(gradient(target, mixer), gradient(constant, mixer))

    first = mixer(noised, levels.tau_idx, (levels.step_idx + 1).clamp(max=FINEST))
    flowing = torch.where((levels.step_idx < FINEST)[..., None, None], target + (first - first.detach()), target)
    assert torch.equal(flowing.detach(), target)
    assert not torch.allclose(gradient(flowing, mixer), gradient(constant, mixer), rtol=1e-2)


def test_the_teacher_builds_no_graph():
    """Invariant 26."""
    levels, mixer, outputs = all_levels(), Mixer(), []

    def teacher(*inputs: Tensor) -> Tensor:
        outputs.append(mixer(*inputs))
        return outputs[-1]

    shortcut_targets(teacher, *sequence(levels), levels)
    assert [output.grad_fn for output in outputs] == [None, None]


def test_a_broken_teacher_cannot_reach_frames_with_the_finest_step():
    """Invariant 27: neither the value nor the gradient, even where the teacher's answer is not a number."""
    levels = levels_of([0, 3, 7, 2], [3, 3, 3, 3])
    clean, noised = sequence(levels)
    target = shortcut_targets(lambda z, *_: torch.full_like(z, torch.nan), clean, noised, levels)
    assert torch.equal(target, clean)
    mixed = levels_of([0, 3, 7, 2], [0, 3, 3, 2])
    target = shortcut_targets(lambda z, *_: torch.full_like(z, torch.nan), clean, noised, mixed)
    assert torch.equal(target[:, 1:3], clean[:, 1:3])
    assert target[:, [0, 3]].isnan().all()


def test_the_ramp_weights_both_branches():
    """Invariant 28: 0.1 at tau = 0, 0.55 at tau = 0.5."""
    levels = levels_of([0, 4, 0, 4], [0, 1, 3, 3])
    error = shortcut_error(torch.ones(1, 4, 2, 3), torch.zeros(1, 4, 2, 3), levels, ramp=True)
    assert error[0].tolist() == pytest.approx([0.1, 0.55, 0.1, 0.55])
    error = shortcut_error(torch.ones(1, 4, 2, 3), torch.zeros(1, 4, 2, 3), levels, ramp=False)
    assert error[0].tolist() == [1.0, 1.0, 1.0, 1.0]


def test_targets_stay_fp32_and_exact_enough_under_autocast():
    """Invariant 29: with a network in bf16, at the levels where velocities are amplified most."""
    network = nn.Linear(16, 16)
    with torch.no_grad():
        network.weight.copy_(torch.eye(16) + 0.1 * normal(16, 16))
    reference = nn.Linear(16, 16).double()
    reference.load_state_dict(network.state_dict())
    levels = Levels(torch.tensor([[60, 62, 63, 0]]), torch.tensor([[4, 5, 6, 0]]), 64)
    clean = torch.tanh(normal(1, 4, 2, 16))
    noised = corrupt(clean, normal(1, 4, 2, 16, seed=1), levels.tau)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(clean).dtype == torch.bfloat16
        target = shortcut_targets(lambda z, *_: network(z), clean.bfloat16(), noised, levels)
    assert target.dtype == torch.float32
    z, tau, half = noised.double(), levels.tau.double()[..., None, None], levels.step.double()[..., None, None] / 2
    first = (reference(z) - z) / (1 - tau)
    middle = z + first * half
    second = (reference(middle) - middle) / (1 - tau - half)
    expected = z + (1 - tau) * (first + second) / 2
    for t in (0, 1, 3):
        assert (target[0, t] - expected[0, t]).norm() / expected[0, t].norm() < 1e-2
    assert torch.equal(target[0, 2], clean[0, 2].bfloat16().float())


# Sampler


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_sampler_ends_on_the_last_prediction_and_uses_trained_pairs_only(steps: int):
    """Invariants 17 and 18: tau_idx = i k_max / K, step_idx = log2 K, and the last update returns the prediction."""
    calls, mixer = [], Mixer()

    def denoiser(z: Tensor, tau_idx: Tensor, step_idx: Tensor) -> Tensor:
        calls.append((z, tau_idx, step_idx, mixer(z, tau_idx, step_idx).detach()))
        return calls[-1][-1]

    noise = normal(3, 1, 2, 5)
    sample = sample_frame(denoiser, noise, steps, K_MAX)
    assert sample.shape == (3, 1, 2, 5)
    assert torch.equal(calls[0][0], noise)
    assert torch.equal(sample, calls[-1][-1])
    assert [call[1].unique().item() for call in calls] == [i * K_MAX // steps for i in range(steps)]
    assert {call[2].unique().item() for call in calls} == {int(np.log2(steps))}
    assert all(call[1].shape == call[2].shape == (3, 1) for call in calls)


def test_the_sampler_takes_euler_steps_along_the_velocity():
    """Invariant 17: z + (x - z) d / (1 - tau)."""
    mixer, noise = Mixer(), normal(2, 1, 2, 5)
    z = noise
    for i in range(4):
        x = mixer(z, torch.full((2, 1), 2 * i), torch.full((2, 1), 2))
        z = z + (x - z) * 0.25 / (1 - i / 4)
    assert torch.allclose(sample_frame(mixer, noise, 4, K_MAX), z, atol=1e-6)


@pytest.mark.parametrize("steps", [0, 3, 16, -2])
def test_untrained_numbers_of_steps_are_refused(steps: int):
    with pytest.raises(ConfigError, match=f"sampling_steps must be a power of two from 1 to 8, got {steps}"):
        sample_frame(Mixer(), normal(1, 1, 2, 5), steps, K_MAX)
