"""The worker that looks at trained models on validation episodes: what the report shows of them.

Everything is a function of the models, the dataset and (seed, measurement). Numbers of pixels are in decibels of the
squared error that is pooled over all frames of a kind, so that one frame without error isn't worth infinity.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.windows import Continuations, Windows
from dreamer4.agent import Heads
from dreamer4.data.clips import ClipSampler
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.latents import LatentDataset
from dreamer4.data.statistics import pixel_statistics
from dreamer4.dynamics import Dynamics
from dreamer4.envs.minigrid import agent_cell, classify
from dreamer4.heads import PolicyHead, ScalarHead
from dreamer4.imagination import ImaginationConfig, WorldStream, imagine, noise_like
from dreamer4.metrics import mean_stderr
from dreamer4.returns import lambda_returns
from dreamer4.rng import generator
from dreamer4.shortcut import Levels, ShortcutConfig, corrupt, shortcut_error
from dreamer4.tokenizer import Tokenizer
from dreamer4.types import Clip

ROWS = 32  # windows of one pass
SHOWN = 6  # windows whose frames are kept for pictures
GRID_WORLDS = ("MiniGrid-", "BabyAI-")  # environments whose pixels `dreamer4.envs.minigrid` can read


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


class Inspector:
    """Measures tokenizer, world model and heads. `measure` does all of it.

    Args:
        policies: heads whose imagined returns are compared, by name.
        validation_E: bool `[E]`, the episodes to look at; the others give the mean image.
        imagination: contexts and sampling, as the policy was trained with.
        value: of the policy that was trained in imagination; None leaves it out.
        discount: of returns.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        dynamics: Dynamics,
        heads: Heads,
        policies: Mapping[str, PolicyHead],
        dataset: EpisodeDataset,
        latents: LatentDataset,
        validation_E: np.ndarray,
        shortcut: ShortcutConfig,
        imagination: ImaginationConfig,
        env_name: str,
        seed: int,
        value: ScalarHead | None = None,
        discount: float = 0.997,
    ):
        self.tokenizer, self.dynamics, self.heads, self.policies = tokenizer, dynamics, heads, dict(policies)
        self.value, self.discount = value, discount
        for module in (tokenizer, dynamics, heads, value, *self.policies.values()):
            if module is not None:
                module.requires_grad_(False).eval()
        self.dataset, self.shortcut, self.imagination = dataset, shortcut, imagination
        self.env_name, self.seed = env_name, seed
        self.clips = ClipSampler(dataset, validation_E, latents, seed, "inspection")
        self.windows = Windows(dataset, validation_E, imagination.context, seed)
        self.mean_HWC, _ = pixel_statistics(dataset, ~np.asarray(validation_E, bool), 20_000, seed)
        self.device = dynamics.latent_in.weight.device

    def measure(self, count: int, steps: int | None = None) -> dict[str, Any]:
        """All measurements, each on up to `count` windows; `steps` of imagination, by default the horizon."""
        steps = steps or self.imagination.horizon
        return {
            "reconstructions": self.reconstructions(count),
            "horizon": self.horizon(count, steps),
            "agent_cell": self.agent_cell(count, steps),
            "action_shuffle": self.action_shuffle(count),
            "rewards": self.rewards(count),
        }

    def reconstructions(self, count: int) -> dict[str, Any]:
        """The tokenizer alone: frames from their latents on disk, against the mean image of the training episodes."""
        real, coded = [], []
        errors, floor = 0.0, 0.0
        context_NC = self.windows.uniform("reconstructions", count, 1).context_NC
        for start in range(0, len(context_NC), ROWS):
            context = self.clip(context_NC[start : start + ROWS])
            decoded = self.decode(context.latents_BTSD, context.segment_BT)[:, -1]
            frames = self.dataset.frames.take(context_NC[start : start + ROWS, -1])
            errors += squared_error(decoded, frames / 255).sum()
            floor += squared_error(self.mean_HWC, frames / 255).sum()
            real.append(frames)
            coded.append(to_bytes(decoded))
        return {
            "n": len(context_NC),
            "psnr": decibels(errors / len(context_NC)),
            "mean_image_psnr": decibels(floor / len(context_NC)),
            "real": np.concatenate(real)[:SHOWN],
            "reconstructed": np.concatenate(coded)[:SHOWN],
        }

    def horizon(self, count: int, steps: int) -> dict[str, Any]:
        """Contexts continued by the recorded actions: decibels at every step for the model, for repeating the last
        frame, for the mean image, and for the real frames through the tokenizer (what the model can reach at most).

        The windows are those with the longest continuations; `n` says how many reach a step.
        """
        windows = self.windows.longest("horizon", count, steps)
        errors, shown = {name: np.zeros(steps) for name in ("model", "copy", "mean_image", "tokenizer")}, []
        for part in self.compare("horizon", windows):
            real = part.real_NTHWC / np.float32(255)
            guesses = {
                "model": part.imagined_NTHWC,
                "copy": part.last_NHWC[:, None] / np.float32(255),
                "mean_image": self.mean_HWC,
                "tokenizer": part.coded_NTHWC,
            }
            for name, guess in guesses.items():
                errors[name] += (squared_error(guess, real) * part.known_NT).sum(axis=0)
            shown = shown or [part]
        n = windows.known_NH.sum(axis=0)
        first = shown[0]
        return {
            "n": n,
            **{f"{name}_psnr": decibels(np.divide(e, n, out=np.full(steps, np.nan), where=n > 0)) for name, e in errors.items()},
            "last": first.last_NHWC[:SHOWN],
            "real": first.real_NTHWC[:SHOWN],
            "imagined": to_bytes(first.imagined_NTHWC[:SHOWN]),
            "known": first.known_NT[:SHOWN],
        }

    def agent_cell(self, count: int, steps: int | None = None) -> dict[str, Any]:
        """How often the imagined agent stands in the right cell, against repeating the last frame; grid worlds only.

        `one_step` is over windows that end anywhere, `horizon` over those of `horizon`. Both also count the balls,
        and say how often the agent is right where it really moved (`moved_*`); repeating never is.
        """
        if not self.env_name.startswith(GRID_WORLDS):
            return {}
        steps = steps or self.imagination.horizon
        one_step = self._cells("one step", self.windows.uniform("one step", count, 1))
        horizon = self._cells("horizon", self.windows.longest("horizon", count, steps))
        return {"one_step": {name: value[0].item() for name, value in one_step.items()}, "horizon": horizon}

    def _cells(self, use: str, windows: Continuations) -> dict[str, np.ndarray]:
        """Per step `[H]`: shares of windows, and mean numbers of balls."""
        steps = windows.known_NH.shape[1]
        names = ("model", "copy", "moved", "moved_model", "real_balls", "imagined_balls")
        sums = {name: np.zeros(steps) for name in names}
        for part in self.compare(use, windows):
            occurring = tiles_in(part.last_NHWC) | tiles_in(part.real_NTHWC[part.known_NT])
            last = cells(part.last_NHWC, occurring)[:, None]
            real, imagined = (cells(f, occurring) for f in (part.real_NTHWC, to_bytes(part.imagined_NTHWC)))
            right, moved = (imagined == real).all(-1), (real != last).any(-1)
            counted = {
                "model": right,
                "copy": ~moved,
                "moved": moved,
                "moved_model": moved & right,
                "real_balls": balls(part.real_NTHWC, occurring),
                "imagined_balls": balls(to_bytes(part.imagined_NTHWC), occurring),
            }
            for name, value in counted.items():
                sums[name] += (value * part.known_NT).sum(axis=0)
        n, n_moved = windows.known_NH.sum(axis=0), sums.pop("moved")
        moved_model = sums.pop("moved_model") / np.where(n_moved > 0, n_moved, np.nan)
        shares = {name: value / np.where(n > 0, n, np.nan) for name, value in sums.items()}
        return {"n": n, **shares, "moved_n": n_moved.astype(int), "moved_model": moved_model}

    def action_shuffle(self, count: int) -> dict[str, Any]:
        """Squared error of the next frame's latents, predicted from pure noise in one pass, with the action that was
        played and with the action of another window. A ratio of 1 is a model that ignores actions.

        `one_step` is the pass of the largest step size, `finest` that of the smallest, which is trained on data alone.
        `*_changed` are over the windows in which the other action really is another one (`n_changed`).
        """
        windows = self.windows.uniform("action shuffle", count, 1)
        true_NA = self._arrival(windows).act_in_BTA[:, -1]
        other_NA = true_NA.roll(1, dims=0)
        changed = (other_NA != true_NA).any(-1).cpu().numpy()
        result: dict[str, Any] = {"n": len(windows), "n_changed": int(changed.sum())}
        for name, step_idx in (("one_step", 0), ("finest", self.shortcut.finest)):
            true, other = (self._jump(windows, actions, step_idx) for actions in (true_NA, other_NA))
            result[name] = {"error": true.mean().item(), "shuffled_error": other.mean().item()}
            result[name]["ratio"] = ratio(other, true)
            result[name]["ratio_changed"] = ratio(other[changed], true[changed])
        return result

    def _arrival(self, windows: Continuations) -> Clip:
        """Contexts with the frame that follows."""
        return self.clip(np.concatenate([windows.context_NC, windows.following_NH[:, :1]], axis=1))

    @torch.no_grad()
    def _jump(self, windows: Continuations, act_in_NA: Tensor, step_idx: int) -> np.ndarray:
        """Squared errors `[N]` of the frame after the context, which is all noise, after an action."""
        errors = []
        for start in range(0, len(windows), ROWS):
            clip = self._arrival(windows.rows(start, start + ROWS))
            assert clip.latents_BTSD is not None
            actions = torch.cat([clip.act_in_BTA[:, :-1], act_in_NA[start : start + ROWS, None]], dim=1)
            tau_idx = torch.full_like(clip.segment_BT, self.shortcut.context_idx)
            step = torch.full_like(clip.segment_BT, self.shortcut.finest)
            tau_idx[:, -1], step[:, -1] = 0, step_idx
            levels = Levels(tau_idx, step, self.shortcut.k_max)
            noise = noise_like(clip.latents_BTSD, generator(self.seed, "inspection", "action shuffle", start))
            z = corrupt(clip.latents_BTSD, noise, levels.tau)
            output = self.dynamics(z, tau_idx, step, actions, clip.act_in_known_BT, clip.segment_BT)
            errors.append(shortcut_error(output.clean_BTSD, clip.latents_BTSD, levels, ramp=False)[:, -1])
        return torch.cat(errors).cpu().numpy()

    def rewards(self, count: int) -> dict[str, Any]:
        """The heads on real validation frames, and returns that are imagined from contexts.

        `calibration`: for every true reward, the mean prediction and its spread. `continues`: mean probability to go
        on at terminal and at other frames. `returns`: see `returns`.
        """
        context_NC = self.windows.arriving("rewards", count)
        features = self._features("rewards", context_NC)
        ends = context_NC[:, -1]
        predicted = self.heads.reward.predict(features)[:, 0].float().cpu().numpy()
        result = {"calibration": calibration(self.dataset.reward_F[ends], predicted), "returns": self.returns(count)}
        if self.heads.continues is not None:
            probability = self.heads.continues.predict(features)[:, 0].cpu().numpy()
            terminal = self.dataset.terminal_F[ends]
            result["continues"] = {
                "n_terminal": int(terminal.sum()),
                "n_other": int((~terminal).sum()),
                "terminal": mean_or_nan(probability[terminal]),
                "other": mean_or_nan(probability[~terminal]),
            }
        return result

    @torch.no_grad()
    def _features(self, use: str, context_NC: np.ndarray) -> Tensor:
        """Agent features `[N, 1, M]` of the last frames, as the acting agent has them."""
        features = []
        for start in range(0, len(context_NC), ROWS):
            clip = self.clip(context_NC[start : start + ROWS])
            assert clip.latents_BTSD is not None
            stream = WorldStream(self.dynamics, self.shortcut, self.imagination, clip.batch, clip.task_BT[:, -1])
            noise = noise_like(clip.latents_BTSD, generator(self.seed, "inspection", use, start))
            observed = stream.observe(
                clip.latents_BTSD, clip.act_in_BTA, clip.act_in_known_BT, noise, clip.segment_BT
            )
            assert observed is not None
            features.append(observed[:, -1:])
        return torch.cat(features)

    def returns(self, count: int) -> dict[str, Any]:
        """Discounted returns over the horizon from the same contexts: of the recordings, and imagined by each policy.

        A policy that behaves like the recordings should imagine their return. With a value head, `value` is its mean
        at the contexts, `bootstrapped` the imagined return with the value of the last frame, which should agree for
        the policy that the value is of.
        """
        windows = self.windows.uniform("returns", count, self.imagination.horizon)
        reward = np.where(windows.known_NH, self.dataset.reward_F[windows.following_NH], 0)
        recorded = (reward * self.discount ** np.arange(reward.shape[1])).sum(axis=1)
        result: dict[str, Any] = {"n": len(windows), "discount": self.discount, "horizon": reward.shape[1]}
        result["recorded"] = mean_and_error(recorded)
        result["imagined"] = {name: self._imagined(name, policy, windows) for name, policy in self.policies.items()}
        return result

    def _imagined(self, name: str, policy: PolicyHead, windows: Continuations) -> dict[str, float]:
        plain, bootstrapped, start_value = [], [], []
        for start in range(0, len(windows), ROWS):
            context = self.clip(windows.context_NC[start : start + ROWS])
            noise = generator(self.seed, "inspection", "returns", start)  # the same for all policies
            dream = imagine(self.dynamics, self.heads, policy, context, self.shortcut, self.imagination, noise)
            nothing = torch.zeros(dream.features_BTM.shape[:2], device=self.device)
            arguments = (dream.reward_BT, dream.continue_BT)
            plain.append(lambda_returns(*arguments, nothing, self.discount, 1.0)[:, 0])
            if self.value is not None:
                value = self.value.predict(dream.features_BTM)
                bootstrapped.append(lambda_returns(*arguments, value, self.discount, 1.0)[:, 0])
                start_value.append(value[:, 0])
        result = mean_and_error(torch.cat(plain).cpu().numpy())
        if self.value is not None:
            result["bootstrapped"] = torch.cat(bootstrapped).mean().item()
            result["value"] = torch.cat(start_value).mean().item()
        return result

    def compare(self, use: str, windows: Continuations) -> Iterator[Comparison]:
        """Continues contexts by the recorded actions, `ROWS` windows at a time."""
        steps = windows.known_NH.shape[1]
        config = replace(self.imagination, horizon=steps)
        for start in range(0, len(windows), ROWS):
            part = windows.rows(start, start + ROWS)
            context = self.clip(part.context_NC)
            noise = generator(self.seed, "inspection", use, start)
            # What is played at a frame is recorded there: at the last frame of the context, and at those that follow.
            chosen_at = np.concatenate([part.context_NC[:, -1:], part.following_NH[:, :-1]], axis=1)
            played = torch.from_numpy(self.dataset.act_out_FA[chosen_at]).to(self.device)
            policy = self.heads.policy  # not asked
            dream = imagine(
                self.dynamics, self.heads, policy, context, self.shortcut, config, noise, played_BTA=played
            )
            following = self.clip(part.following_NH).latents_BTSD
            yield Comparison(
                self.dataset.frames.take(part.context_NC[:, -1]),
                self.dataset.frames.take(part.following_NH),
                part.known_NH,
                self._decode_after(context, dream.latents_BTSD),
                self._decode_after(context, following),
            )

    def clip(self, frame_BT: np.ndarray) -> Clip:
        return self.clips.clip(frame_BT).to(self.device)

    def _decode_after(self, context: Clip, latents_BTSD: Tensor | None) -> np.ndarray:
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
