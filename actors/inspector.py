"""The worker that looks at trained models on validation episodes: what the report shows of them.

Everything is a function of the models, the dataset and (seed, measurement). Pixels are judged in decibels of the
squared error pooled over all frames of a kind, so that one frame without error isn't worth infinity.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from actors.lens import ROWS, Comparison, Lens
from actors.measures import (
    agent_cells,
    ball_counts,
    calibration,
    decibels,
    mean_and_error,
    mean_or_nan,
    ratio_of_means,
    squared_error,
    tiles_in,
    to_bytes,
)
from actors.windows import Continuations, Windows
from dreamer4.agent import Heads
from dreamer4.data.clips import ClipSampler
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.latents import LatentDataset
from dreamer4.data.statistics import pixel_statistics
from dreamer4.dynamics import Dynamics
from dreamer4.heads import PolicyHead, ScalarHead
from dreamer4.imagination import ImaginationConfig
from dreamer4.returns import lambda_returns
from dreamer4.shortcut import ShortcutConfig
from dreamer4.tokenizer import Tokenizer

SHOWN = 6  # windows whose frames are kept for pictures
GRID_WORLDS = ("MiniGrid-", "BabyAI-")  # environments whose tiles can be read from pixels


class Inspector:
    """Measures tokenizer, world model and heads. `measure` does all of it.

    Args:
        policies: heads whose imagined returns are compared, by name.
        latents: of the dataset, by this tokenizer.
        validation_E: bool `[E]`, the episodes to look at; the others give the mean image.
        imagination: contexts and sampling, as the policy was trained with.
        value: of the policy that was trained in imagination; None leaves it out.
        discount: of returns.

    Raises:
        DataError: there are fewer validation frames than a context has.
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
        validation_E = np.asarray(validation_E, bool)
        clips = ClipSampler(dataset, validation_E, latents, seed, "inspection")
        self.lens = Lens(tokenizer, dynamics, heads, clips, shortcut, imagination, seed)
        self.windows = Windows(dataset, validation_E, imagination.context, seed)
        self.mean_HWC, _ = pixel_statistics(dataset, ~validation_E, 20_000, seed)
        self.heads, self.policies, self.value = heads, dict(policies), value
        self.dataset, self.env_name, self.discount = dataset, env_name, discount
        self.steps, self.finest = imagination.horizon, shortcut.finest

    def measure(self, count: int, steps: int | None = None) -> dict[str, Any]:
        """All measurements, each on up to `count` windows; `steps` of imagination, by default the horizon."""
        return {
            "reconstructions": self.reconstructions(count),
            "horizon": self.horizon(count, steps),
            "agent_cell": self.agent_cell(count, steps),
            "action_shuffle": self.action_shuffle(count),
            "rewards": self.rewards(count),
        }

    def reconstructions(self, count: int) -> dict[str, Any]:
        """The tokenizer alone: frames from their latents on disk, against the mean image of the training episodes."""
        context_NC = self.windows.uniform("reconstructions", count, 1).context_NC
        real, coded, error, floor = [], [], 0.0, 0.0
        for start in range(0, len(context_NC), ROWS):
            context = self.lens.clip(context_NC[start : start + ROWS])
            decoded = self.lens.decode(context.latents_BTSD, context.segment_BT)[:, -1]
            frames = self.dataset.frames.take(context_NC[start : start + ROWS, -1])
            exact = frames / np.float32(255)
            error += squared_error(decoded, exact).sum()
            floor += squared_error(self.mean_HWC, exact).sum()
            real.append(frames)
            coded.append(to_bytes(decoded))
        return {
            "n": len(context_NC),
            "psnr": decibels(error / len(context_NC)),
            "mean_image_psnr": decibels(floor / len(context_NC)),
            "real": np.concatenate(real)[:SHOWN],
            "reconstructed": np.concatenate(coded)[:SHOWN],
        }

    def horizon(self, count: int, steps: int | None = None) -> dict[str, Any]:
        """Contexts continued by the recorded actions: decibels `[H]` at every step.

        For the model, for repeating the last frame (`copy_psnr`), for the mean image, and for the real frames through
        the tokenizer, which is the most that the model can reach. `n` says how many windows reach a step within their
        episode. Frames are kept of some with the longest continuations.
        """
        steps = steps or self.steps
        windows = self.windows.uniform("horizon", count, steps)
        errors = {name: np.zeros(steps) for name in ("model", "copy", "mean_image", "tokenizer")}
        shown: Comparison | None = None
        for part in self.lens.compare("horizon", windows):
            real = part.real_NTHWC / np.float32(255)
            guesses = {
                "model": part.imagined_NTHWC,
                "copy": part.last_NHWC[:, None] / np.float32(255),
                "mean_image": self.mean_HWC,
                "tokenizer": part.coded_NTHWC,
            }
            for name, guess in guesses.items():
                errors[name] += (squared_error(guess, real) * part.known_NT).sum(axis=0)
            shown = shown or part
        assert shown is not None
        n = windows.known_NH.sum(axis=0)
        measured = np.where(n > 0, n, np.nan)
        return {
            "n": n,
            **{f"{name}_psnr": decibels(error / measured) for name, error in errors.items()},
            "last": shown.last_NHWC[:SHOWN],
            "real": shown.real_NTHWC[:SHOWN],
            "imagined": to_bytes(shown.imagined_NTHWC[:SHOWN]),
            "known": shown.known_NT[:SHOWN],
        }

    def agent_cell(self, count: int, steps: int | None = None) -> dict[str, Any]:
        """How often the imagined agent stands in the right cell, against repeating the last frame; grid worlds only.

        Over the windows of `horizon`, at every step, and once more for the first step alone. Also counts the balls,
        and says how often the agent is right in the real frame through the tokenizer (what the model can reach), and
        how often the model is right where the agent really has moved (`moved_*`); repeating never is.
        """
        if not self.env_name.startswith(GRID_WORLDS):
            return {}
        horizon = self._cells(self.windows.uniform("horizon", count, steps or self.steps))
        return {"one_step": {name: value[0].item() for name, value in horizon.items()}, "horizon": horizon}

    def _cells(self, windows: Continuations) -> dict[str, np.ndarray]:
        """Per step `[H]`: shares of windows, and mean numbers of balls."""
        names = ("model", "copy", "tokenizer", "moved", "moved_model", "real_balls", "imagined_balls")
        sums = {name: np.zeros(windows.known_NH.shape[1]) for name in names}
        frames = np.unique(np.append(windows.context_NC[:, -1:], windows.following_NH))
        among = tiles_in(self.dataset.frames.take(frame) for frame in frames)
        for part in self.lens.compare("horizon", windows):
            imagined_NTHWC, coded_NTHWC = to_bytes(part.imagined_NTHWC), to_bytes(part.coded_NTHWC)
            last = agent_cells(part.last_NHWC, among)[:, None]
            videos = (part.real_NTHWC, imagined_NTHWC, coded_NTHWC)
            real, imagined, coded = (agent_cells(video, among) for video in videos)
            right, moved = (imagined == real).all(-1), (real != last).any(-1)
            counted = {
                "model": right,
                "copy": ~moved,
                "tokenizer": (coded == real).all(-1),
                "moved": moved,
                "moved_model": moved & right,
                "real_balls": ball_counts(part.real_NTHWC, among),
                "imagined_balls": ball_counts(imagined_NTHWC, among),
            }
            for name, value in counted.items():
                sums[name] += (value * part.known_NT).sum(axis=0)
        n, n_moved = windows.known_NH.sum(axis=0), sums.pop("moved")
        moved_model = sums.pop("moved_model") / np.where(n_moved > 0, n_moved, np.nan)
        shares = {name: total / np.where(n > 0, n, np.nan) for name, total in sums.items()}
        return {"n": n, **shares, "moved_n": n_moved.astype(int), "moved_model": moved_model}

    def action_shuffle(self, count: int) -> dict[str, Any]:
        """Squared error of the next latents, predicted from pure noise in one pass, after the action that was played
        and after that of another window. A ratio of 1 is a model that ignores actions.

        `one_step` is the pass of the largest step size, `finest` that of the smallest, which is trained on data alone.
        `ratio_changed` is over the windows in which the other action really is another one (`n_changed`).
        """
        windows = self.windows.uniform("action shuffle", count, 1)
        true_NA = self.lens.clip(windows.following_NH).act_in_BTA[:, 0]
        other_NA = true_NA.roll(1, dims=0)
        changed = (other_NA != true_NA).any(-1).cpu().numpy()
        result: dict[str, Any] = {"n": len(windows), "n_changed": int(changed.sum())}
        for name, step_idx in (("one_step", 0), ("finest", self.finest)):
            true, other = (
                self.lens.jump_errors("action shuffle", windows, actions, step_idx) for actions in (true_NA, other_NA)
            )
            result[name] = {
                "error": float(true.mean()),
                "shuffled_error": float(other.mean()),
                "ratio": ratio_of_means(other, true),
                "ratio_changed": ratio_of_means(other[changed], true[changed]),
            }
        return result

    def rewards(self, count: int) -> dict[str, Any]:
        """The heads on real validation frames, and returns that are imagined from contexts.

        `calibration`: for every true reward the mean prediction and its spread. `continues`: mean probability to go
        on, at terminal and at other frames; absent without a continue head. `returns`: see there.
        """
        context_NC = self.windows.arriving("rewards", count)
        features, ends = self.lens.features("rewards", context_NC), context_NC[:, -1]
        predicted = self.heads.reward.predict(features)[:, 0].float().cpu().numpy()
        result = {"calibration": calibration(self.dataset.reward_F[ends], predicted), "returns": self.returns(count)}
        if self.heads.continues is not None:
            goes_on = self.heads.continues.predict(features)[:, 0].cpu().numpy()
            terminal = self.dataset.terminal_F[ends]
            result["continues"] = {
                "n_terminal": int(terminal.sum()),
                "n_other": int((~terminal).sum()),
                "terminal": mean_or_nan(goes_on[terminal]),
                "other": mean_or_nan(goes_on[~terminal]),
            }
        return result

    @torch.no_grad()
    def returns(self, count: int) -> dict[str, Any]:
        """Discounted returns over the horizon from the same contexts: of the recordings, and imagined by each policy.

        A policy that behaves like the recordings should imagine their return. With a value head, `value` is its mean
        at the contexts and `bootstrapped` the imagined return with the value of the last frame; they should agree for
        the policy that the value is of.
        """
        windows = self.windows.uniform("returns", count, self.steps)
        reward = np.where(windows.known_NH, self.dataset.reward_F[windows.following_NH], 0)
        recorded = (reward * self.discount ** np.arange(self.steps)).sum(axis=1)
        imagined = {name: self._imagined(policy, windows) for name, policy in self.policies.items()}
        facts = {"n": len(windows), "discount": self.discount, "horizon": self.steps}
        return {**facts, "recorded": mean_and_error(recorded), "imagined": imagined}

    def _imagined(self, policy: PolicyHead, windows: Continuations) -> dict[str, float]:
        plain, bootstrapped, values = [], [], []
        for dream in self.lens.dreams("returns", windows, policy):
            outcome = dream.reward_BT, dream.continue_BT
            nothing = torch.zeros_like(dream.features_BTM[..., 0])
            plain.append(lambda_returns(*outcome, nothing, self.discount, 1.0)[:, 0])
            if self.value is not None:
                value = self.value.predict(dream.features_BTM)
                bootstrapped.append(lambda_returns(*outcome, value, self.discount, 1.0)[:, 0])
                values.append(value[:, 0])
        result = mean_and_error(torch.cat(plain).cpu().numpy())
        if values:
            result["bootstrapped"] = float(torch.cat(bootstrapped).mean())
            result["value"] = float(torch.cat(values).mean())
        return result
