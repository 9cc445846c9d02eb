"""The models of a run held over windows of recordings: what they see, predict and imagine there."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from actors.windows import Continuations
from dreamer4.agent import Heads
from dreamer4.data.clips import ClipSampler
from dreamer4.dynamics import Dynamics
from dreamer4.heads import PolicyHead
from dreamer4.imagination import Dream, ImaginationConfig, WorldStream, imagine, noise_like
from dreamer4.rng import generator
from dreamer4.shortcut import Levels, ShortcutConfig, corrupt, shortcut_error
from dreamer4.tokenizer import Tokenizer
from dreamer4.types import Clip

ROWS = 64  # windows of one pass


@dataclass(frozen=True)
class Comparison:
    """Frames of some windows: uint8 `last_NHWC` is the context's last one, uint8 `real_NTHWC` what followed.

    `imagined_NTHWC` are the model's frames and `coded_NTHWC` the real ones through the tokenizer, float in [0, 1];
    `known_NT` is false beyond the end of the episode.
    """

    last_NHWC: np.ndarray
    real_NTHWC: np.ndarray
    known_NT: np.ndarray
    imagined_NTHWC: np.ndarray
    coded_NTHWC: np.ndarray


class Lens:
    """Passes of tokenizer, world model and heads over windows, `ROWS` at a time.

    Noise is a function of (seed, use, position among the windows). Args as of `actors.inspector.Inspector`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        dynamics: Dynamics,
        heads: Heads,
        clips: ClipSampler,
        shortcut: ShortcutConfig,
        imagination: ImaginationConfig,
        seed: int,
    ):
        for module in (tokenizer, dynamics, heads):
            module.requires_grad_(False).eval()
        self.tokenizer, self.dynamics, self.heads, self.clips = tokenizer, dynamics, heads, clips
        self.shortcut, self.imagination, self.seed = shortcut, imagination, seed
        self.device = dynamics.latent_in.weight.device

    def clip(self, frame_BT: np.ndarray) -> Clip:
        return self.clips.clip(frame_BT).to(self.device)

    def noise(self, use: str, start: int) -> torch.Generator:
        return generator(self.seed, "inspection", use, start)

    def compare(self, use: str, windows: Continuations) -> Iterator[Comparison]:
        """Continues contexts by the recorded actions."""
        frames, actions_FA = self.clips.dataset.frames, self.clips.dataset.act_out_FA
        # An action is recorded where it is chosen: at the last frame of the context, and at those that follow.
        chosen_at_NH = np.concatenate([windows.context_NC[:, -1:], windows.following_NH[:, :-1]], axis=1)
        imagined = self.played(use, windows, actions_FA[chosen_at_NH])
        for (_, part), imagined_NHHWC in zip(windows.parts(ROWS), imagined, strict=True):
            yield Comparison(
                frames.take(part.context_NC[:, -1]),
                frames.take(part.following_NH),
                part.known_NH,
                imagined_NHHWC,
                self.decode_after(self.clip(part.context_NC), self.clip(part.following_NH).latents_BTSD),
            )

    def played(self, use: str, windows: Continuations, act_NHA: np.ndarray) -> Iterator[np.ndarray]:
        """Continues contexts by given actions: video of `ROWS` of them at a time, float in [0, 1]."""
        config = replace(self.imagination, horizon=act_NHA.shape[1])
        for start, part in windows.parts(ROWS):
            context, noise = self.clip(part.context_NC), self.noise(use, start)
            played = torch.from_numpy(act_NHA[start : start + ROWS]).to(self.device)
            policy = self.heads.policy  # which is not asked
            dream = imagine(self.dynamics, self.heads, policy, context, self.shortcut, config, noise, played)
            yield self.decode_after(context, dream.latents_BTSD)

    def dreams(self, use: str, windows: Continuations, policy: PolicyHead) -> Iterator[Dream]:
        """Rollouts of a policy from the contexts, with the same noise for every policy."""
        policy.requires_grad_(False).eval()
        for start, part in windows.parts(ROWS):
            context, noise = self.clip(part.context_NC), self.noise(use, start)
            yield imagine(self.dynamics, self.heads, policy, context, self.shortcut, self.imagination, noise)

    @torch.no_grad()
    def features(self, use: str, context_NC: np.ndarray) -> Tensor:
        """Agent features `[N, 1, M]` of the last frames, as the acting agent has them."""
        features = []
        for start in range(0, len(context_NC), ROWS):
            clip = self.clip(context_NC[start : start + ROWS])
            assert clip.latents_BTSD is not None
            stream = WorldStream(self.dynamics, self.shortcut, self.imagination, clip.batch, clip.task_BT[:, -1])
            noise = noise_like(clip.latents_BTSD, self.noise(use, start))
            observed = stream.observe(clip.latents_BTSD, clip.act_in_BTA, clip.act_in_known_BT, noise, clip.segment_BT)
            assert observed is not None
            features.append(observed[:, -1:])
        return torch.cat(features)

    @torch.no_grad()
    def jump_errors(self, use: str, windows: Continuations, act_in_NA: Tensor, step_idx: int) -> np.ndarray:
        """Squared errors `[N]` of the latents after the context, from pure noise in one pass, after given actions."""
        errors = []
        for start, part in windows.parts(ROWS):
            clip = self.clip(np.concatenate([part.context_NC, part.following_NH[:, :1]], axis=1))
            assert clip.latents_BTSD is not None
            actions = torch.cat([clip.act_in_BTA[:, :-1], act_in_NA[start : start + len(part), None]], dim=1)
            tau_idx = torch.full_like(clip.segment_BT, self.shortcut.context_idx)
            step = torch.full_like(clip.segment_BT, self.shortcut.finest)
            tau_idx[:, -1], step[:, -1] = 0, step_idx
            levels = Levels(tau_idx, step, self.shortcut.k_max)
            z = corrupt(clip.latents_BTSD, noise_like(clip.latents_BTSD, self.noise(use, start)), levels.tau)
            output = self.dynamics(z, tau_idx, step, actions, clip.act_in_known_BT, clip.segment_BT)
            errors.append(shortcut_error(output.clean_BTSD, clip.latents_BTSD, levels, ramp=False)[:, -1])
        return torch.cat(errors).cpu().numpy()

    def decode_after(self, context: Clip, latents_BTSD: Tensor | None) -> np.ndarray:
        """Video of latents that follow a context; the decoder sees the context too."""
        assert context.latents_BTSD is not None and latents_BTSD is not None
        both = torch.cat([context.latents_BTSD, latents_BTSD], dim=1)
        segment = torch.cat([context.segment_BT, context.segment_BT[:, -1:].expand(-1, latents_BTSD.shape[1])], dim=1)
        return self.decode(both, segment)[:, context.length :]

    @torch.no_grad()
    def decode(self, latents_BTSD: Tensor | None, segment_BT: Tensor) -> np.ndarray:
        """Float32 video `[B, T, H, W, C]` in [0, 1]."""
        assert latents_BTSD is not None
        return self.tokenizer.decode(latents_BTSD, segment_BT).float().cpu().numpy()
