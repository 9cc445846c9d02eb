"""Stage 2: the world model learns by shortcut forcing (paper, section 3.2, equation 7)."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dreamer4 import flops
from dreamer4.data.loader import Batches
from dreamer4.dynamics import Dynamics
from dreamer4.errors import ConfigError
from dreamer4.normalise import RmsNormaliser
from dreamer4.rng import generator
from dreamer4.shortcut import (
    Levels,
    ShortcutConfig,
    bootstrapped_rows,
    corrupt,
    sample_levels,
    shortcut_error,
    shortcut_targets,
)
from dreamer4.types import Clip
from learners.learner import Learner
from learners.optim import OptimConfig
from learners.parts import WHOLE, Part, Rows


@dataclass(frozen=True)
class DynamicsTraining:
    """Short clips mostly, long ones sometimes: longer than the window, so that length generalises."""

    steps: int = 3000
    batch: int = 32
    length: int = 8
    long_length: int = 16
    long_share: float = 0.1  # [G] of the steps
    long_batch: int = 16
    long_only_steps: int = 0  # the paper finetunes on long batches in the end
    packed: bool = False  # [G] one shape of batch: long_batch rows of long_length, most of them cut into short clips
    image_share: float = 0.3  # rows whose frames are separate images
    optim: OptimConfig = field(default_factory=OptimConfig)
    save_every: int = 250

    def __post_init__(self) -> None:
        if not 0 <= self.image_share <= 1 or not 0 <= self.long_share <= 1:
            raise ConfigError(f"image_share ({self.image_share}) and long_share ({self.long_share}) are shares of 1")
        if self.packed and self.long_length % max(1, self.length):
            raise ConfigError(f"packed rows of {self.long_length} frames don't divide into clips of {self.length}")

    def batch_shape(self, seed: int, index: int) -> tuple[int, int]:
        """Rows and frames of batch number `index`."""
        if self.packed:
            return self.long_batch, self.long_length
        draw = float(torch.rand((), generator=generator(seed, "batch length", index)))
        long = draw < self.long_share_at(index)
        return (self.long_batch, self.long_length) if long else (self.batch, self.length)

    def long_share_at(self, index: int) -> float:
        """The share of long batches, or if they are packed of long rows, at an update."""
        return 1.0 if index >= self.steps - self.long_only_steps else self.long_share


def cut(clip: Clip, length: int, long_share: float, noise: torch.Generator, rows: Rows | None = None) -> Clip:
    """Cuts all but `long_share` of the rows into clips of `length` frames, none of which sees another.

    So short and long clips are in one batch, of one shape at every update: a compiled model is compiled once. The clips
    of a row follow each other in the recordings, which are read in one piece, but are less varied than so many windows.

    Args:
        rows: as in `separate_images`.
    """
    whole_B1 = _some_rows(clip, long_share, noise, rows)
    number_T = torch.arange(clip.length, device=clip.segment_BT.device) // length
    return replace(clip, segment_BT=clip.segment_BT + torch.where(whole_B1, 0, number_T))


def separate_images(clip: Clip, share: float, noise: torch.Generator, rows: Rows | None = None) -> Clip:
    """Makes separate images of a share of the rows: no frame sees another, and actions are missing (section 5.3).

    Args:
        rows: which rows of the batch the clip has, as in the functions below; None = all.
    """
    image_B1 = _some_rows(clip, share, noise, rows)
    own_T = torch.arange(clip.length, device=clip.segment_BT.device)
    return replace(
        clip,
        segment_BT=torch.where(image_B1, own_T, clip.segment_BT),
        act_in_known_BT=clip.act_in_known_BT & ~image_B1,
    )


def _some_rows(clip: Clip, share: float, noise: torch.Generator, rows: Rows | None) -> Tensor:
    """Bool `[B, 1]`: each row with this probability."""
    rows = rows or Rows(clip.batch)
    draw_B1 = rows.of(torch.rand((rows.batch, 1), generator=noise, device=noise.device))
    return (draw_B1 < share).to(clip.segment_BT.device)


def noised(
    clip: Clip, shortcut: ShortcutConfig, noise: torch.Generator, rows: Rows | None = None
) -> tuple[Tensor, Levels]:
    """Corrupted latents `[B, T, S, D]` and their levels; with drafts, of a clip whose frames come `twice`."""
    assert clip.latents_BTSD is not None
    rows, device = rows or Rows(clip.batch), clip.latents_BTSD.device
    drawn = sample_levels(shortcut, rows.batch, clip.length // (2 if shortcut.drafts else 1), noise)
    levels = Levels(rows.of(drawn.tau_idx).to(device), rows.of(drawn.step_idx).to(device), drawn.k_max)
    gaussian = rows.normal(clip.latents_BTSD.shape[1:], noise).to(device)
    return corrupt(clip.latents_BTSD, gaussian, levels.tau), levels


def twice(clip: Clip) -> Clip:
    """All frames of a clip, and then all of them again: as frames and as drafts."""
    return clip.map(lambda x: torch.cat([x, x], dim=1))


def targets(
    dynamics: Dynamics,
    clip: Clip,
    noised_BTSD: Tensor,
    levels: Levels,
    shortcut: ShortcutConfig,
    rows: Rows | None = None,
) -> Tensor:
    """Clean latents, or the teacher's where the step is larger than the finest; the teacher is the model itself."""
    assert clip.latents_BTSD is not None
    rows = rows or Rows(clip.batch)
    # All parts ask the teacher for equally many rows, because the ranks of a sharded model can only pass together.
    asked = slice(rows.leading(bootstrapped_rows(shortcut, rows.batch).stop))
    if asked.stop == 0:
        return clip.latents_BTSD

    def teacher(z: Tensor, tau_idx: Tensor, step_idx: Tensor) -> Tensor:
        actions, known, segments = clip.act_in_BTA[asked], clip.act_in_known_BT[asked], clip.segment_BT[asked]
        return dynamics(z, tau_idx, step_idx, actions, known, segments, drafts=shortcut.drafts).clean_BTSD

    some = Levels(levels.tau_idx[asked], levels.step_idx[asked], levels.k_max)
    bootstrap = shortcut_targets(teacher, clip.latents_BTSD[asked], noised_BTSD[asked], some)
    return torch.cat([bootstrap, clip.latents_BTSD[asked.stop :]])


def shortcut_errors(
    dynamics: Dynamics,
    clip: Clip,
    shortcut: ShortcutConfig,
    noise: torch.Generator,
    rows: Rows | None = None,
    agent: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What the world model is trained by: the weighted errors `[B, T]` of its predictions of a clip of latents.

    With drafts these are the errors of the drafts, which is exactly what sampling asks for: a frame after committed
    ones. Every frame is such a target; among frames of random levels few have clear ones before them.

    Returns:
        The errors, and with `agent` the agent features `[B, T, M]` (with drafts, those of the committed frames).
    """
    length = clip.length
    clip = twice(clip) if shortcut.drafts else clip
    z, levels = noised(clip, shortcut, noise, rows)
    target = targets(dynamics, clip, z, levels, shortcut, rows)  # before the student: no graph is kept
    output = dynamics(
        z,
        levels.tau_idx,
        levels.step_idx,
        clip.act_in_BTA,
        clip.act_in_known_BT,
        clip.segment_BT,
        clip.task_BT if agent else None,
        drafts=shortcut.drafts,
    )
    error_BT = shortcut_error(output.clean_BTSD, target, levels, shortcut.ramp)
    features_BTM = None if output.features_BTM is None else output.features_BTM[:, :length]
    return error_BT[:, -length:], features_BTM


class DynamicsLearner(Learner):
    stage = "dynamics"

    def __init__(
        self, dynamics: Dynamics, training: DynamicsTraining, shortcut: ShortcutConfig, clips: Batches, seed: int
    ):
        super().__init__(dynamics, RmsNormaliser(["shortcut"]), training.optim, training.steps)
        self.dynamics, self.training, self.shortcut, self.clips, self.seed = dynamics, training, shortcut, clips, seed

    def losses(self, index: int, part: Part = WHOLE) -> dict[str, Tensor]:
        noise = generator(self.seed, self.stage, index)
        batch, length = self.training.batch_shape(self.seed, index)
        rows = part.rows(batch)
        clip = self.clips.batch(index, batch, length, rows.index)
        clip = separate_images(clip, self.training.image_share, noise, rows)
        if self.training.packed:
            clip = cut(clip, self.training.length, self.training.long_share_at(index), noise, rows)
        loss = self.shortcut_loss(clip.to(self.dynamics.latent_in.weight.device), noise, rows)
        return {"shortcut": loss if rows.whole else loss * rows.share}

    def estimate_flops(self, index: int) -> int:
        return flops.shortcut_update(self.dynamics.config, self.shortcut, *self.training.batch_shape(self.seed, index))

    def shortcut_loss(self, clip: Clip, noise: torch.Generator, rows: Rows | None = None) -> Tensor:
        return shortcut_errors(self.dynamics, clip, self.shortcut, noise, rows)[0].mean()
