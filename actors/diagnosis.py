"""Which part of a trained agent is the ceiling: every part against the truth, up to what it rests on.

For grid worlds whose recordings can be replayed. The policy dreams from validation contexts; then the same actions
are played in the real environment from the same moments, so frames, rewards and ends of both are known step by step.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from actors.inspector import SHOWN
from actors.lens import ROWS, Lens
from actors.measures import mean_and_error, mean_or_nan, tiles_in, to_bytes
from actors.replay import Outcome, Replay
from actors.windows import Continuations, Windows
from dreamer4.envs.minigrid import Tile, classify
from dreamer4.heads import PolicyHead, ScalarHead
from dreamer4.imagination import Dream
from dreamer4.returns import lambda_returns

AGENT = "agent"
SCENERY = ("empty", "wall")


def right(guess_HWC: np.ndarray, real_HWC: np.ndarray, among: frozenset[str]) -> tuple[bool, bool, bool, bool]:
    """What a frame shows as it is: agent, cell and direction; items, places and states; kinds of items; every tile.

    The kinds are right where every key, door and goal is still there, wherever and however.
    """
    guess, real = (_cells(classify(frame, among)) for frame in (guess_HWC, real_HWC))
    poses = [[(cell, tile) for cell, tile in tiles.items() if tile[0].startswith(AGENT)] for tiles in (guess, real)]
    pose = [(cell, tile[1]) for cell, tile in poses[0]] == [(cell, tile[1]) for cell, tile in poses[1]]
    return pose, _items(guess) == _items(real), _kinds(guess) == _kinds(real), guess == real


def shares(truths_N4: list[tuple[bool, bool, bool, bool]]) -> dict[str, float]:
    """How often each was right, by name; not a number of nothing."""
    means = np.mean(truths_N4, axis=0).tolist() if truths_N4 else [float("nan")] * 4
    return dict(zip(("pose", "items", "kinds", "frame"), means, strict=True))


def agreement(
    imagined_NHHWC: np.ndarray,
    real_NHHWC: np.ndarray,
    known_NH: np.ndarray,
    last_NHWC: np.ndarray,
    steps: tuple[int, ...],
    among: frozenset[str],
    to_the_end: bool = False,
) -> dict[str, dict[str, float]]:
    """Imagined frames against real ones, and the context's last frame repeated, after each of `steps`.

    `known_NH` are the frames that count: of every window the first ones, or none.
    Of windows that end before: nothing, or `to_the_end` their last frame. A good policy's windows end soon, and those
    that go on are where it failed.
    """
    found = {}
    for step in (step for step in steps if step <= known_NH.shape[1]):
        counted = np.flatnonzero(known_NH[:, 0 if to_the_end else step - 1])
        at = known_NH[counted, :step].sum(axis=1) - 1
        real, imagined, last = real_NHHWC[counted, at], imagined_NHHWC[counted, at], last_NHWC[counted]
        truths = [right(*pair, among) for pair in zip(imagined, real, strict=True)]
        copies = [right(*pair, among) for pair in zip(last, real, strict=True)]
        found[str(step)] = {
            "n": len(counted),
            **shares(truths),
            **{f"copy_{name}": share for name, share in shares(copies).items()},
        }
    return found


def arrival(
    imagined_NHHWC: np.ndarray, real_NHHWC: np.ndarray, terminal_NH: np.ndarray, among: frozenset[str]
) -> dict[str, float]:
    """The same of the frames in which episodes end. Nothing follows them, and few recordings may show any."""
    ends = np.nonzero(terminal_NH)
    truths = [right(*pair, among) for pair in zip(imagined_NHHWC[ends], real_NHHWC[ends], strict=True)]
    return {"n": len(truths), **shares(truths)}


def _cells(tiles: list[list[Tile]]) -> dict[tuple[int, int], Tile]:
    return {(r, c): tile for r, row in enumerate(tiles) for c, tile in enumerate(row)}


def _items(tiles: dict[tuple[int, int], Tile]) -> set[tuple[tuple[int, int], str]]:
    """What lies where, under the agent too; the carried item lies in its corner."""
    found = {(cell, name.removeprefix(f"{AGENT} on ")) for cell, (name, _) in tiles.items()}
    return {(cell, name) for cell, name in found if name not in (AGENT, *SCENERY)}


def _kinds(tiles: dict[tuple[int, int], Tile]) -> Counter[str]:
    """How many there are of each item, a door being the same whether it is open, closed or locked."""
    return Counter(name.replace(" open", "").replace(" locked", "") for _, name in _items(tiles))


def ranks(values_N: np.ndarray) -> np.ndarray:
    """0 to N - 1 in ascending order; equal values share their mean rank."""
    _, index_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    return (last - (counts - 1) / 2)[index_N]


def correlation(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Of two rows of numbers; not a number where one of them doesn't vary."""
    return float(np.corrcoef(a_N, b_N)[0, 1]) if len(a_N) > 1 and a_N.std() > 0 and b_N.std() > 0 else float("nan")


def dreamt_and_real(dreams: list[Dream], outcome: Outcome, discount: float, least: float) -> dict[str, Any]:
    """Rewards, ends and discounted returns, as they were dreamt and as they were.

    Args:
        least: size from which on a dreamt reward is one.
    """
    reward, goes_on = (
        torch.cat([getattr(dream, name) for dream in dreams]).float().cpu().numpy()
        for name in ("reward_BT", "continue_BT")
    )
    known, terminal = outcome.known_NH, outcome.terminal_NH
    paid, taken = outcome.reward_NH > 0, outcome.reward_NH < 0
    alive = np.concatenate([np.ones_like(goes_on[:, :1]), np.cumprod(goes_on, axis=1)[:, :-1]], axis=1)
    imagined, real = discounted(reward * alive, discount), discounted(outcome.reward_NH, discount)
    return {
        "reward": {
            "n_paid": int(paid.sum()),
            "real_when_paid": mean_or_nan(outcome.reward_NH[paid]),
            "imagined_when_paid": mean_or_nan(reward[paid]),
            "n_taken": int(taken.sum()),
            "real_when_taken": mean_or_nan(outcome.reward_NH[taken]),
            "imagined_when_taken": mean_or_nan(reward[taken]),
            "imagined_otherwise": mean_or_nan(reward[known & ~paid & ~taken]),
        },
        "first_reward": first_rewards(reward * alive, outcome.reward_NH, least),
        "continues": {
            "n_terminal": int(terminal.sum()),
            "terminal": mean_or_nan(goes_on[terminal]),
            "other": mean_or_nan(goes_on[known & ~terminal]),
        },
        "returns": {
            "n": len(real),
            "imagined": mean_and_error(imagined),
            "real": mean_and_error(real),
            "correlation": correlation(imagined, real),
        },
    }


def first_rewards(dreamt_NH: np.ndarray, real_NH: np.ndarray, least: float) -> dict[str, float]:
    """Whether dream and reality give the same first reward, or penalty: their sign, and the step.

    How much is given doesn't count: it may depend on a clock that no frame shows. Of `n` windows, those in which one of
    the two gives something, `same` is the share in which both do, and `same_step` at the same step; `missed` are those
    in which reality alone does, `false` those in which the dream alone does, which a policy may learn to look for.
    """
    sign_N, step_N = _first(np.sign(dreamt_NH) * (np.abs(dreamt_NH) >= least))
    real_sign_N, real_step_N = _first(np.sign(real_NH))
    any_N, same_N = (sign_N != 0) | (real_sign_N != 0), (sign_N == real_sign_N) & (sign_N != 0)
    return {
        "n": int(any_N.sum()),
        "same": mean_or_nan(same_N[any_N]),
        "same_step": mean_or_nan((same_N & (step_N == real_step_N))[any_N]),
        "missed": mean_or_nan((sign_N == 0)[any_N]),
        "false": mean_or_nan((real_sign_N == 0)[any_N]),
    }


def _first(sign_NH: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first number other than 0 of every row, 0 where there is none, and its place."""
    step_N = (sign_NH != 0).argmax(axis=1)
    return np.take_along_axis(sign_NH, step_N[:, None], axis=1)[:, 0], step_N


def discounted(reward_NH: np.ndarray, discount: float) -> np.ndarray:
    """Returns `[N]` over the horizon."""
    return (reward_NH * discount ** np.arange(reward_NH.shape[1])).sum(axis=1)


class Diagnosis:
    """Measures tokenizer, world model, heads and values on the same contexts.

    Args:
        lens: the models, and how they are sampled; dreams are as long as its imagination's horizon.
        policies: whose actions are dreamt and replayed, by name.
        returns: of the same policies in the real environment, by name, where they are known.
        values: the value heads that were trained beside some of the policies, by their names.
    """

    def __init__(
        self,
        lens: Lens,
        windows: Windows,
        replay: Replay,
        policies: Mapping[str, PolicyHead],
        discount: float,
        returns: Mapping[str, float] | None = None,
        values: Mapping[str, ScalarHead] | None = None,
    ):
        self.lens, self.windows, self.replay, self.values = lens, windows, replay, dict(values or {})
        self.policies, self.discount, self.returns = dict(policies), discount, dict(returns or {})
        self.dataset, self.horizon = replay.dataset, lens.imagination.horizon
        sizes_F = np.abs(self.dataset.reward_F[np.arange(len(self.dataset.reward_F))])
        self.least = float(sizes_F[sizes_F > 0].min(initial=1.0)) / 2  # of the smallest reward that was recorded

    def measure(self, count: int, steps: tuple[int, ...] = (1, 4, 16)) -> dict[str, Any]:
        """Everything, on up to `count` windows; shares of windows after each of `steps` imagined ones.

        Tokenizer and world model are measured twice: on uniform windows, and on as many that end at distinct frames;
        there a random action is tried as well, because a policy finds whatever is wrong to its advantage.
        """
        windows = self.windows.uniform("diagnosis", count, self.horizon)
        distinct = self.windows.distinct("diagnosis", count, self.horizon)
        self.among = self._tiles(windows, distinct)
        by_policy = {name: self._replayed(name, windows, steps) for name in self.policies}
        return {
            "tokenizer": self._tokenizer(windows),
            "recorded": self._recorded(windows, steps),
            "distinct": {
                "tokenizer": self._tokenizer(distinct),
                "recorded": self._recorded(distinct, steps),
                "random": self._random(distinct),
            },
            "policies": by_policy,
            "ranking": self._ranking(by_policy),
        }

    def _tiles(self, *looked_at: Continuations) -> frozenset[str]:
        """Names of all tiles that real frames show there, and at the ends of successful episodes: what nothing shows
        can't be told apart from what looks nearly like it."""
        seen = [frames for windows in looked_at for frames in (windows.context_NC, windows.following_NH)]
        ends_E = (self.dataset.starts_E + self.dataset.lengths_E - 1)[self.dataset.success_E]
        frames = np.unique(np.concatenate([ends_E, *(frames.ravel() for frames in seen)]))
        return tiles_in(self.dataset.frames.take(frame) for frame in frames)

    def _tokenizer(self, windows: Continuations) -> dict[str, Any]:
        """What is left of real frames after they went through the tokenizer."""
        real: list[np.ndarray] = []
        coded: list[np.ndarray] = []
        for _, part in windows.parts(ROWS):
            context = self.lens.clip(part.context_NC)
            coded.append(to_bytes(self.lens.decode(context.latents_BTSD, context.segment_BT)[:, -1]))
            real.append(self.dataset.frames.take(part.context_NC[:, -1]))
        truths = [right(*pair, self.among) for pair in zip(np.concatenate(coded), np.concatenate(real), strict=True)]
        return {"n": len(truths), **shares(truths)}

    def _recorded(self, windows: Continuations, steps: tuple[int, ...]) -> dict[str, dict[str, float]]:
        """The world model alone: contexts continued by the recorded actions, open loop."""
        parts = list(self.lens.compare("diagnosis", windows))
        imagined = np.concatenate([to_bytes(part.imagined_NTHWC) for part in parts])
        real = np.concatenate([part.real_NTHWC for part in parts])
        known = np.concatenate([part.known_NT for part in parts])
        last = np.concatenate([part.last_NHWC for part in parts])
        return agreement(imagined, real, known, last, steps, self.among)

    def _random(self, windows: Continuations) -> dict[str, dict[str, float]]:
        """The world model after one uniform action, which may be one that no recording has there."""
        space = self.lens.dynamics.config.space
        actions_NHA = space.random(len(windows), self.lens.noise("random actions", 0)).numpy()[:, None]
        imagined = np.concatenate([to_bytes(part) for part in self.lens.played("random", windows, actions_NHA)])
        outcome = self.replay.outcome(windows.context_NC[:, -1], actions_NHA)
        last = self.dataset.frames.take(windows.context_NC[:, -1])
        return agreement(imagined, outcome.frames_NHHWC, outcome.known_NH, last, (1,), self.among)

    def _replayed(self, name: str, windows: Continuations, steps: tuple[int, ...]) -> dict[str, Any]:
        """A policy's dreams against the same actions in the real environment."""
        policy, dreams, frames = self.policies[name], [], []
        for (_, part), dream in zip(windows.parts(ROWS), self.lens.dreams("diagnosis", windows, policy), strict=True):
            dreams.append(dream)
            frames.append(to_bytes(self.lens.decode_after(self.lens.clip(part.context_NC), dream.latents_BTSD)))
        imagined = np.concatenate(frames)
        actions = torch.cat([dream.act_out_BTA for dream in dreams]).cpu().numpy()
        outcome = self.replay.outcome(windows.context_NC[:, -1], actions)
        last = self.dataset.frames.take(windows.context_NC[:, -1])
        real, acted_in = outcome.frames_NHHWC, outcome.known_NH & ~outcome.terminal_NH
        found: dict[str, Any] = {
            "dynamics": agreement(imagined, real, acted_in, last, steps, self.among, to_the_end=True),
            "arrival": arrival(imagined, real, outcome.terminal_NH, self.among),
            **dreamt_and_real(dreams, outcome, self.discount, self.least),
        }
        if name in self.values:
            found["values"] = self._values(self.values[name], dreams, outcome)
        shown = slice(SHOWN)
        frames = {"last": last[shown], "real": outcome.frames_NHHWC[shown], "known": outcome.known_NH[shown]}
        return {**found, "frames": {**frames, "imagined": imagined[shown]}}

    @torch.no_grad()
    def _values(self, head: ScalarHead, dreams: list[Dream], outcome: Outcome) -> dict[str, Any]:
        """What a value head expects at the contexts; what it should by the dreams; and what was really returned.

        A dream that goes on after the horizon is valued at its last frame. What reality pays after it is not known, so
        real returns compare where nearly all episodes end within the horizon.
        """
        expected, dreamt = [], []
        for dream in dreams:
            value = head.predict(dream.features_BTM)
            expected.append(value[:, 0])
            dreamt.append(lambda_returns(dream.reward_BT, dream.continue_BT, value, self.discount, 1.0)[:, 0])
        expected_N, dreamt_N = (torch.cat(parts).float().cpu().numpy() for parts in (expected, dreamt))
        return {
            "expected": mean_and_error(expected_N),
            "dreamt": mean_and_error(dreamt_N),
            "correlation_dreamt": correlation(expected_N, dreamt_N),
            "correlation_real": correlation(expected_N, discounted(outcome.reward_NH, self.discount)),
        }

    def _ranking(self, by_policy: Mapping[str, Any]) -> dict[str, Any]:
        """Whether imagination orders the policies as reality does: rank correlations over the policies."""
        names = [name for name in by_policy if name in self.returns]
        imagined = np.array([by_policy[name]["returns"]["imagined"]["mean"] for name in by_policy])
        replayed = np.array([by_policy[name]["returns"]["real"]["mean"] for name in by_policy])
        played = np.array([self.returns[name] for name in names])
        of_names = np.array([by_policy[name]["returns"]["imagined"]["mean"] for name in names])
        return {
            "policies": len(by_policy),
            "same_moments": correlation(ranks(imagined), ranks(replayed)),
            "whole_episodes": correlation(ranks(of_names), ranks(played)) if names else float("nan"),
        }
