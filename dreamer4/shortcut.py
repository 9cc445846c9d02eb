"""Shortcut forcing: diffusion forcing with few-step consistency, in x-space (paper, section 3.2, equations 3 to 8).

Signal level tau: 0 is noise, 1 is clean. Step size d = 2^-e. Both are indices of trained embeddings: `tau_idx` counts
in units of 1 / k_max, `step_idx` is e. Every frame of a sequence has its own pair.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamer4.errors import ConfigError

# (noised latents [B, T, S, D], tau_idx [B, T], step_idx [B, T]) -> predicted clean latents [B, T, S, D]
Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ShortcutConfig:
    """The objective. Defaults are the paper's; the options exist because small models on small budgets need them."""

    k_max: int = 64  # finest grid of signal levels [L]
    context_noise: float = 0.1  # noise fraction of committed frames, snapped to the grid
    ramp: bool = True  # loss weight 0.9 tau + 0.1; otherwise 1
    context_share: float = 0.0  # [G] share of frames trained at the context's level instead of a random one
    pure_noise: float = 0.0  # [G] share of the other frames that start from tau = 0
    drafts: bool = False  # [G] every frame comes twice: committed at the context's level, and as a draft to predict
    bootstrap_rows: float | None = None  # [G] share of rows with d > 1 / k_max; None samples d per frame

    def __post_init__(self) -> None:
        if self.k_max < 2 or self.k_max & (self.k_max - 1):
            raise ConfigError(f"k_max must be a power of two of at least 2, got {self.k_max}")
        if not 0 < self.context_noise < 1:
            raise ConfigError(f"context_noise must be in (0, 1), got {self.context_noise}")
        if self.drafts and self.context_share:
            raise ConfigError(
                f"with drafts all frames are at the context's level once, so context_share must be 0, got "
                f"{self.context_share}"
            )

    @property
    def finest(self) -> int:
        """The step index of d = 1 / k_max."""
        return int(math.log2(self.k_max))

    @property
    def context_idx(self) -> int:
        """Signal level of committed frames: 1 - context_noise on the trained grid, never the untrained tau = 1."""
        return min(self.k_max - 1, max(1, round((1 - self.context_noise) * self.k_max)))


@dataclass(frozen=True)
class Levels:
    """Signal levels and step sizes of a batch, `[B, T]` indices."""

    tau_idx: Tensor
    step_idx: Tensor
    k_max: int

    @property
    def tau(self) -> Tensor:
        return self.tau_idx.float() / self.k_max

    @property
    def step(self) -> Tensor:
        return torch.exp2(-self.step_idx.float())


def sample_levels(config: ShortcutConfig, batch: int, length: int, generator: torch.Generator) -> Levels:
    """Section 6.1 of paper.md: e uniform, tau uniform over the multiples of d below 1, independent per frame.

    With drafts, levels `[B, 2 T]`: frames at the context's, and then such levels of their drafts.
    """
    shape, device = (batch, length), generator.device

    def uniform(size: tuple[int, ...] = shape) -> Tensor:
        return torch.rand(size, generator=generator, device=device)

    if config.bootstrap_rows is None:
        step_idx = (uniform() * (config.finest + 1)).long()
    else:
        bootstrapped = torch.arange(batch, device=device) < round(config.bootstrap_rows * batch)
        step_idx = torch.where(bootstrapped[:, None], (uniform() * config.finest).long(), config.finest)
    levels = torch.exp2(step_idx.float())
    tau_idx = (uniform() * levels).long() * (config.k_max // levels.long())
    tau_idx = torch.where(uniform() < config.pure_noise, 0, tau_idx)
    in_context = uniform() < config.context_share
    tau_idx = torch.where(in_context, config.context_idx, tau_idx)
    step_idx = torch.where(in_context, config.finest, step_idx)
    if config.drafts:
        tau_idx = torch.cat([torch.full_like(tau_idx, config.context_idx), tau_idx], dim=1)
        step_idx = torch.cat([torch.full_like(step_idx, config.finest), step_idx], dim=1)
    return Levels(tau_idx, step_idx, config.k_max)


def corrupt(clean_BTSD: Tensor, noise_BTSD: Tensor, tau_BT: Tensor) -> Tensor:
    """Equation 1: tau = 0 is the noise itself."""
    tau = tau_BT[..., None, None]
    return (1 - tau) * noise_BTSD + tau * clean_BTSD


def shortcut_targets(denoiser: Denoiser, clean_BTSD: Tensor, noised_BTSD: Tensor, levels: Levels) -> Tensor:
    """What the network should predict, `[B, T, S, D]` fp32 without gradient (equation 7).

    Frames with the finest step are to predict the clean latents. Others are to agree with two half steps: the mean
    velocity of these, written as the x-prediction that has it, x* = z + (1 - tau) v*. This form makes the squared
    error of x equal to (1 - tau)^2 times the squared error of velocities, with no division on the student's side.
    """
    finest = levels.k_max.bit_length() - 1
    bootstrapped = levels.step_idx < finest
    with torch.no_grad():
        clean, noised = clean_BTSD.float(), noised_BTSD.float()
        half_idx = (levels.step_idx + 1).clamp(max=finest)
        half_tau_idx = torch.where(
            bootstrapped, levels.tau_idx + levels.k_max // (2 << levels.step_idx), levels.tau_idx
        )
        tau, half_tau = (index.float()[..., None, None] / levels.k_max for index in (levels.tau_idx, half_tau_idx))
        # Frames that take no half step keep latent and level; their velocity is never used.
        half_step = torch.where(bootstrapped, levels.step / 2, 0.0)[..., None, None]
        first = (denoiser(noised, levels.tau_idx, half_idx).float() - noised) / (1 - tau)
        middle = noised + torch.where(half_step > 0, first * half_step, 0.0)
        second = (denoiser(middle, half_tau_idx, half_idx).float() - middle) / (1 - half_tau)
        bootstrap = noised + (1 - tau) * (first + second) / 2
        return torch.where(bootstrapped[..., None, None], bootstrap, clean)


def bootstrapped_rows(config: ShortcutConfig, batch: int) -> slice:
    """The rows that need a teacher: all of them, or with `bootstrap_rows` the first ones of the batch."""
    return slice(batch) if config.bootstrap_rows is None else slice(round(config.bootstrap_rows * batch))


def shortcut_error(prediction_BTSD: Tensor, target_BTSD: Tensor, levels: Levels, ramp: bool) -> Tensor:
    """`[B, T]` weighted squared error of every frame (equations 7 and 8), mean over the latent's numbers."""
    error_BT = (prediction_BTSD.float() - target_BTSD).square().mean(dim=(-2, -1))
    return error_BT * (0.9 * levels.tau + 0.1) if ramp else error_BT


def sample_frame(denoiser: Denoiser, noise_B1SD: Tensor, steps: int, k_max: int) -> Tensor:
    """Noise to a clean frame `[B, 1, S, D]` in `steps` Euler steps; the last one lands on the prediction itself.

    Raises:
        ConfigError: `steps` is not a power of two up to `k_max`, the only step sizes that are trained.
    """
    if steps < 1 or steps & (steps - 1) or steps > k_max:
        raise ConfigError(f"sampling_steps must be a power of two from 1 to {k_max}, got {steps}")
    z = noise_B1SD
    step_idx = torch.full(z.shape[:2], steps.bit_length() - 1, device=z.device)
    for i in range(steps):
        tau_idx = torch.full_like(step_idx, i * k_max // steps)
        clean = denoiser(z, tau_idx, step_idx).to(z.dtype)  # fp32, also from a network in bf16
        z = clean if i == steps - 1 else z + (clean - z) / (steps - i)
    return z
