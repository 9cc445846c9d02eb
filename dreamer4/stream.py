"""The agent in a real environment: pixels in, actions out, one frame at a time (paper, section 3.3).

Frames take the path of training: causal encoding with a cache, corruption to the context's signal level, commit.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dreamer4.distributions import ActionDistribution
from dreamer4.dynamics import Dynamics
from dreamer4.heads import PolicyHead
from dreamer4.imagination import ImaginationConfig, WorldStream
from dreamer4.shortcut import ShortcutConfig
from dreamer4.tokenizer import Tokenizer


class AgentStream:
    """`batch` independent streams. Rows start anew whenever their frame is an episode's first.

    Args:
        task: index of the task that all streams pursue.
        sample: draw actions from the policy; otherwise take its mode.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        dynamics: Dynamics,
        policy: PolicyHead,
        shortcut: ShortcutConfig,
        batch: int,
        task: int = 0,
        sample: bool = True,
    ):
        self.tokenizer, self.policy, self.sample = tokenizer, policy, sample
        self.device = tokenizer.pixel_mean.device
        self.pixels = tokenizer.init_cache(batch)
        tasks = torch.full((batch,), task, device=self.device)
        self.world = WorldStream(dynamics, shortcut, ImaginationConfig(), batch, tasks)

    @torch.no_grad()
    def features(
        self, frames_BHWC: np.ndarray, act_in_BA: np.ndarray, first_B: np.ndarray, noise: Sequence[torch.Generator]
    ) -> Tensor:
        """Features `[B, 1, M]` of the current frames; the first step of `act`."""
        first = torch.from_numpy(np.ascontiguousarray(first_B))
        self.pixels.reset(first)
        self.world.cache.reset(first)
        video = torch.from_numpy(np.array(frames_BHWC)).to(self.device)[:, None]
        actions = torch.from_numpy(np.array(act_in_BA, np.float32)).to(self.device)[:, None]
        latents = self.tokenizer.encode(video, cache=self.pixels)
        shape = latents.shape[2:]
        context_noise = torch.stack([torch.randn(shape, generator=row) for row in noise]).to(self.device)[:, None]
        features = self.world.observe(latents, actions, ~first.to(self.device)[:, None], context_noise)
        assert features is not None
        return features

    @torch.no_grad()
    def act(
        self, frames_BHWC: np.ndarray, act_in_BA: np.ndarray, first_B: np.ndarray, noise: Sequence[torch.Generator]
    ) -> np.ndarray:
        """Actions `[B, A]` chosen at the current frames.

        Args:
            frames_BHWC: uint8 pixels.
            act_in_BA: the actions that led to them; ignored where `first_B`.
            first_B: the frame starts an episode.
            noise: one generator per row, on the CPU; equal noise and history give equal actions in any batch.
        """
        distribution = self.policy(self.features(frames_BHWC, act_in_BA, first_B, noise)[:, 0]).at(0)
        if not self.sample:
            return distribution.mode().cpu().numpy()
        # Row by row, so that a row's action doesn't depend on its neighbours' draws.
        logits = [part.cpu() for part in distribution.logits]
        rows = [
            ActionDistribution(distribution.space, [part[i] for part in logits]).sample(generator)
            for i, generator in enumerate(noise)
        ]
        return torch.stack(rows).numpy()
