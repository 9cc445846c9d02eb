"""Plays policies in the real environment: many environments in lockstep, a fixed number of episodes in each.

Episodes are dealt out before the first step, so short ones are not over-represented, and every episode has its own
seed and its own noise: results don't depend on how many environments play side by side.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dreamer4.dynamics import Dynamics
from dreamer4.envs.planners import Demonstrator, Mixture
from dreamer4.envs.registry import action_space, make, success
from dreamer4.errors import ConfigError
from dreamer4.heads import PolicyHead
from dreamer4.metrics import mean_stderr, wilson
from dreamer4.rng import generator, numpy_generator
from dreamer4.shortcut import ShortcutConfig
from dreamer4.stream import AgentStream
from dreamer4.tokenizer import Tokenizer


@dataclass(frozen=True)
class Moment:
    """What all rows of a policy see at one step. Rows that are done repeat their last frame; their actions are unused.

    `frames_BHWC` uint8; `act_in_BA` the actions that led there, 0 at first frames; `first_B` whether the frame starts
    an episode; `playing_B` whether the row is not done; `episode_B` and `step_B` number episode and frame; `envs` the
    environments, for players that may look inside.
    """

    frames_BHWC: np.ndarray
    act_in_BA: np.ndarray
    first_B: np.ndarray
    playing_B: np.ndarray
    episode_B: np.ndarray
    step_B: np.ndarray
    envs: list[Any]


class Policy(Protocol):
    """Chooses actions `[B, A]`. `start` is told the number of rows; whatever was played before is over then."""

    def start(self, rows: int) -> None: ...
    def act(self, moment: Moment) -> np.ndarray: ...


class RandomPolicy:
    """Uniform actions."""

    def __init__(self, seed: int):
        self.seed = seed

    def start(self, rows: int) -> None:
        pass

    def act(self, moment: Moment) -> np.ndarray:
        rows = []
        for env, episode, step in zip(moment.envs, moment.episode_B, moment.step_B, strict=True):
            noise = generator(self.seed, "random policy", int(episode), int(step))
            rows.append(action_space(env).random(1, noise)[0].numpy())
        return np.stack(rows)


class DemonstratorPolicy:
    """The player of the recordings, in episodes that are not among them."""

    def __init__(self, env_name: str, mixture: Mixture, seed: int):
        self.env_name, self.mixture, self.seed = env_name, mixture, seed

    def start(self, rows: int) -> None:
        self.players: dict[int, Demonstrator] = {}

    def act(self, moment: Moment) -> np.ndarray:
        actions = np.zeros_like(moment.act_in_BA)
        for row in np.flatnonzero(moment.playing_B).tolist():
            if moment.first_B[row]:
                random = numpy_generator(self.seed, "demonstrator policy", int(moment.episode_B[row]))
                self.players[row] = Demonstrator(self.env_name, moment.envs[row], self.mixture, random)
            actions[row, 0] = self.players[row].act()
        return actions


class AgentPolicy:
    """A trained policy on the streaming path of deployment; sampled actions unless told otherwise."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        dynamics: Dynamics,
        policy: PolicyHead,
        shortcut: ShortcutConfig,
        seed: int,
        task: int = 0,
        sample: bool = True,
    ):
        self.models = (tokenizer, dynamics, policy, shortcut)
        self.seed, self.task, self.sample = seed, task, sample

    def start(self, rows: int) -> None:
        self.stream = AgentStream(*self.models, batch=rows, task=self.task, sample=self.sample)

    def act(self, moment: Moment) -> np.ndarray:
        noise = [
            generator(self.seed, "evaluation", int(episode), int(step))
            for episode, step in zip(moment.episode_B, moment.step_B, strict=True)
        ]
        return self.stream.act(moment.frames_BHWC, moment.act_in_BA, moment.first_B, noise)


@dataclass(frozen=True)
class EvaluationResult:
    """Per episode, in the order of their seeds; lengths in frames."""

    returns: list[float]
    successes: list[bool]
    lengths: list[int]
    seeds: list[int]

    def __add__(self, other: "EvaluationResult") -> "EvaluationResult":
        mine, theirs = vars(self), vars(other)
        return EvaluationResult(**{name: mine[name] + theirs[name] for name in mine})

    def summary(self) -> dict[str, Any]:
        """Mean return with its standard error, success rate with its 95 % Wilson interval, and the episodes."""
        mean, stderr = mean_stderr(self.returns)
        wins, count = sum(self.successes), len(self.successes)
        low, high = wilson(wins, count)
        numbers = {"episodes": count, "mean_return": mean, "stderr": stderr, "success": wins / count}
        return {**numbers, "success_low": low, "success_high": high, **vars(self)}


class Evaluator:
    """Plays episodes of one environment; episode i is reset with seed `first_seed + i`.

    Args:
        parallel: environments in lockstep.
        max_frames: longer episodes are cut.

    Raises:
        ConfigError: there is no such environment, or nothing to play.
    """

    def __init__(self, env_name: str, parallel: int, first_seed: int, max_frames: int):
        if parallel < 1 or max_frames < 2:
            raise ConfigError(f"parallel {parallel} must be at least 1 and max_frames {max_frames} at least 2")
        self.env_name, self.parallel = env_name, parallel
        self.first_seed, self.max_frames = first_seed, max_frames

    def play(self, policy: Policy, first: int, episodes: int) -> EvaluationResult:
        """Plays episodes `first` to `first + episodes - 1` to their ends."""
        rows = min(self.parallel, episodes)
        envs = [make(self.env_name) for _ in range(rows)]
        waiting = [list(range(first + row, first + episodes, rows))[::-1] for row in range(rows)]
        games = [Game(env, queue, self) for env, queue in zip(envs, waiting, strict=True)]
        policy.start(rows)
        while not all(game.done for game in games):
            actions = policy.act(
                Moment(
                    np.stack([game.frame for game in games]),
                    np.stack([game.act_in for game in games]),
                    np.array([game.step == 0 for game in games]),
                    np.array([not game.done for game in games]),
                    np.array([game.episode for game in games]),
                    np.array([game.step for game in games]),
                    envs,
                )
            )
            for game, action in zip(games, actions, strict=True):
                game.advance(action)
        for env in envs:
            env.close()
        results = sorted(result for game in games for result in game.results)
        return EvaluationResult(
            returns=[total for _, total, _, _ in results],
            successes=[won for _, _, won, _ in results],
            lengths=[frames for _, _, _, frames in results],
            seeds=[self.first_seed + episode for episode, _, _, _ in results],
        )


class Game:
    """One environment and the episodes that it still has to play."""

    def __init__(self, env: Any, waiting: list[int], evaluator: Evaluator):
        self.env, self.waiting, self.evaluator = env, waiting, evaluator
        self.columns = action_space(env).columns
        self.results: list[tuple[int, float, bool, int]] = []  # episode, return, success, frames
        self.done = False
        self._next()

    def _next(self) -> None:
        if not self.waiting:
            self.done = True
            return
        self.episode = self.waiting.pop()
        self.frame, _ = self.env.reset(seed=self.evaluator.first_seed + self.episode)
        self.act_in = np.zeros(self.columns, np.float32)
        self.step, self.total = 0, 0.0

    def advance(self, action_A: np.ndarray) -> None:
        """Plays an action, and goes on to the next episode where this one ends; does nothing when all are played."""
        if self.done:
            return
        self.frame, reward, terminated, truncated, _ = self.env.step(int(action_A[0]))
        self.act_in = np.asarray(action_A, np.float32)
        self.step += 1
        self.total += float(reward)
        if terminated or truncated or self.step + 1 >= self.evaluator.max_frames:
            self.results.append((self.episode, self.total, success(float(reward), terminated), self.step + 1))
            self._next()
