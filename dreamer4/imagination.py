"""Imagination: the world model unrolled with the policy, and the stream that follows a real environment.

Both take the same steps with the same cache (paper, sections 3.2 and 3.3): a frame is denoised or observed, corrupted
to the context's signal level once, and committed; the commit pass is what later frames see and where h_t is read.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from dreamer4.agent import Heads
from dreamer4.cache import TimeCache
from dreamer4.dynamics import Dynamics, DynamicsOutput
from dreamer4.errors import ConfigError, DataError
from dreamer4.heads import PolicyHead
from dreamer4.shortcut import ShortcutConfig, corrupt, sample_frame
from dreamer4.types import Clip


@dataclass(frozen=True)
class ImaginationConfig:
    """How the world model is sampled."""

    sampling_steps: int = 4
    horizon: int = 16  # [G]
    context: int = 8  # frames of data that a rollout starts from [G]
    features: Literal["commit", "denoise"] = "commit"  # the pass that is remembered and gives h_t [G]
    engine: Literal["eager", "compiled", "graphed"] = "eager"  # of imagination workers, see `dreamer4.engine`

    def __post_init__(self) -> None:
        if self.features not in ("commit", "denoise"):
            raise ConfigError(f"imagination.features must be 'commit' or 'denoise', got '{self.features}'")
        if self.engine not in ("eager", "compiled", "graphed"):
            raise ConfigError(f"imagination.engine must be eager, compiled or graphed, got '{self.engine}'")
        if self.horizon < 1 or self.context < 1:
            raise ConfigError(f"horizon ({self.horizon}) and context ({self.context}) must be at least 1")


@dataclass(frozen=True)
class Dream:
    """H imagined steps. Made by `imagine`; frame 0 is the context's last frame.

    `features_BTM [B, H + 1, M]`, `act_out_BTA [B, H, A]`, `log_prob_BT [B, H]`; `reward_BT`, `continue_BT [B, H]` on
    arrival at frame t + 1; `latents_BTSD [B, H, S, D]` of the imagined frames.
    """

    features_BTM: Tensor
    act_out_BTA: Tensor
    log_prob_BT: Tensor
    reward_BT: Tensor
    continue_BT: Tensor
    latents_BTSD: Tensor


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers from the generator's device, moved to the tensor's."""
    return torch.randn(x.shape, generator=generator, device=generator.device).to(x.device, non_blocking=True)


Frame = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]


class WorldStream:
    """A batch of streams through the frozen world model: `observe` real latents or `generate` imagined ones.

    Args:
        task_B: task of every stream; None leaves the agent tokens out.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        shortcut: ShortcutConfig,
        config: ImaginationConfig,
        batch: int,
        task_B: Tensor | None,
    ):
        self.dynamics, self.shortcut, self.config = dynamics, shortcut, config
        self.task_B = None if task_B is None else task_B.clone()
        self.cache: TimeCache = dynamics.init_cache(batch, agent=task_B is not None)
        self.run: Frame = self.frame  # or the same, compiled: see `dreamer4.engine`

    def _pass(
        self,
        latents_BTSD: Tensor,
        tau_idx_BT: Tensor,
        step_idx_BT: Tensor,
        act_in_BTA: Tensor,
        known_BT: Tensor,
        segment_BT: Tensor | None = None,
        commit: bool = False,
        predict: bool = True,
    ) -> DynamicsOutput:
        """Agent tokens take part in commits only: nothing else reads them, and they are read from nothing else."""
        task_BT = self.task_B[:, None].expand_as(tau_idx_BT) if commit and self.task_B is not None else None
        inputs = latents_BTSD, tau_idx_BT, step_idx_BT, act_in_BTA, known_BT, segment_BT, task_BT
        return self.dynamics(*inputs, self.cache, commit, predict=predict)

    def observe(
        self,
        latents_BTSD: Tensor,
        act_in_BTA: Tensor,
        known_BT: Tensor,
        noise_BTSD: Tensor,
        segment_BT: Tensor | None = None,
    ) -> Tensor | None:
        """Commits clean latents, corrupted to the context's level, and returns their features `[B, T, M]`."""
        level = torch.full(known_BT.shape, self.shortcut.context_idx, device=latents_BTSD.device)
        tau = level.float() / self.shortcut.k_max
        step = torch.full_like(level, self.shortcut.finest)
        noised = corrupt(latents_BTSD, noise_BTSD, tau)
        return self._pass(noised, level, step, act_in_BTA, known_BT, segment_BT, True, predict=False).features_BTM

    def frame(self, act_in_BA: Tensor, noise_B1SD: Tensor, context_noise_B1SD: Tensor) -> tuple[Tensor, Tensor | None]:
        """`generate` with the noise given: where the frame starts from, and that of its commit.

        Denoising passes read the cache and never change it.
        """
        act_in, known = act_in_BA[:, None], torch.ones_like(act_in_BA[:, :1], dtype=torch.bool)
        features: list[Tensor | None] = []

        def denoise(z: Tensor, tau_idx: Tensor, step_idx: Tensor) -> Tensor:
            commit = self.config.features == "denoise" and len(features) == self.config.sampling_steps - 1
            output = self._pass(z, tau_idx, step_idx, act_in, known, commit=commit)
            features.append(output.features_BTM)
            return output.clean_BTSD

        latents = sample_frame(denoise, noise_B1SD, self.config.sampling_steps, self.shortcut.k_max)
        if self.config.features == "denoise":
            return latents, features[-1]
        return latents, self.observe(latents, act_in, known, context_noise_B1SD)

    def generate(self, act_in_BA: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """The next frame `[B, 1, S, D]` after an action, committed, and its features `[B, 1, M]`."""
        config = self.dynamics.config
        like = act_in_BA.new_empty((act_in_BA.shape[0], 1, config.latents, config.channels))
        # The second noise is drawn in both modes of `features`, so that they compare on equal noise.
        return self.run(act_in_BA, noise_like(like, generator), noise_like(like, generator))

    def restart(self, task_B: Tensor | None) -> None:
        """All streams start anew, with these tasks: as good as new ones, and as fast as these have become."""
        self.cache.reset(torch.ones_like(self.cache.position_B, dtype=torch.bool))
        if self.task_B is not None and task_B is not None:
            self.task_B.copy_(task_B)


@torch.no_grad()
def imagine(
    dynamics: Dynamics,
    heads: Heads,
    policy: PolicyHead,
    context: Clip,
    shortcut: ShortcutConfig,
    config: ImaginationConfig,
    generator: torch.Generator,
    played_BTA: Tensor | None = None,
    shuffle_actions: bool = False,
    stream: WorldStream | None = None,
) -> Dream:
    """Rolls the world model out from the end of every context, one rollout per context (section 3.3).

    Args:
        policy: chooses the actions; the frozen prior or the policy in training.
        context: clip of latents; the task of its last frame holds along the rollout.
        played_BTA: `[B, H, A]` actions to play instead of the policy's, to compare with reality.
        shuffle_actions: negative control; the world model gets the actions of another trajectory.
        stream: one of this batch and config to start anew, where making and warming up another one would take long.
    """
    if context.latents_BTSD is None:
        raise DataError("imagination starts from a clip of latents, got one of frames: give the sampler the latents")
    task_B = context.task_BT[:, -1]
    if stream is None:
        stream = WorldStream(dynamics, shortcut, config, context.batch, task_B)
    else:
        stream.restart(task_B)
    latents = context.latents_BTSD
    observed = stream.observe(
        latents, context.act_in_BTA, context.act_in_known_BT, noise_like(latents, generator), context.segment_BT
    )
    assert observed is not None
    features, actions, log_probs, frames = [observed[:, -1:]], [], [], []
    for t in range(config.horizon):
        distribution = policy(features[-1]).at(0)
        action_B1A = distribution.sample(generator) if played_BTA is None else played_BTA[:, t : t + 1]
        act_in_BA = action_B1A[:, 0].roll(1, dims=0) if shuffle_actions else action_B1A[:, 0]
        frame, feature = stream.generate(act_in_BA, generator)
        assert feature is not None
        actions.append(action_B1A)
        log_probs.append(distribution.log_prob(action_B1A))
        features.append(feature)
        frames.append(frame)
    features_BTM = torch.cat(features, dim=1)
    arrived = features_BTM[:, 1:]
    reward = heads.reward.predict(arrived)
    return Dream(
        features_BTM,
        torch.cat(actions, dim=1),
        torch.cat(log_probs, dim=1),
        reward,
        torch.ones_like(reward) if heads.continues is None else heads.continues.predict(arrived),
        torch.cat(frames, dim=1),
    )


def last_frames(clip: Clip, length: int) -> Clip:
    """The end of a clip, as context of a rollout."""
    tensors = {name: value[:, -length:] for name, value in vars(clip).items() if isinstance(value, Tensor)}
    return replace(clip, **tensors)
