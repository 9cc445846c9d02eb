"""Policies judged in the real environment, by evaluators in parallel."""

import functools
import operator
import time
from pathlib import Path
from typing import Any

import numpy as np

from actors.evaluator import AgentPolicy, DemonstratorPolicy, EvaluationResult, Evaluator, Policy, RandomPolicy
from cluster.clock import Clock
from cluster.models import load_actor, load_tokenizer
from cluster.placement import result, worker
from cluster.run import Run
from cluster.variants import trained_by
from dreamer4.files import read_json, write_json


def build_policy(run: Run, name: str) -> Policy:
    """A policy as evaluators play it: `random`, `demonstrator`, `bc`, `pmpo` or a control.

    Raises:
        CheckpointError: it has not been trained in this run.
    """
    config = run.config
    if name == "random":
        return RandomPolicy(config.seed)
    if name == "demonstrator":
        return DemonstratorPolicy(config.env, config.data.demonstrator, config.seed)
    return AgentPolicy(load_tokenizer(run), *load_actor(run, name), config.shortcut, config.seed)


class EvaluatorActor:
    """Plays some of the episodes in a process of its own."""

    def __init__(self, path: str, policy: str):
        self.run = Run.attach(Path(path))
        self.policy = build_policy(self.run, policy)

    def play(self, first: int, episodes: int) -> tuple[EvaluationResult, float]:
        """The result, and the CPU seconds of the process."""
        evaluation = self.run.config.evaluation
        evaluator = Evaluator(self.run.config.env, evaluation.parallel, evaluation.first_seed, evaluation.max_frames)
        return evaluator.play(self.policy, first, episodes), time.process_time()


def evaluate_policy(run: Run, policy: str, episodes: int | None = None) -> dict[str, Any]:
    """Plays `episodes` (by default the config's) of a policy, or returns what was played before, of as many or more.

    The result is kept in `evaluation/POLICY.json`, if the policy is trained to its end.
    """
    evaluation = run.config.evaluation
    episodes = episodes or evaluation.episodes
    path = run.path / "evaluation" / f"{policy}.json"
    wanted = {"policy": policy, "first_seed": evaluation.first_seed, "max_frames": evaluation.max_frames}
    if path.exists():
        known = read_json(path)
        if known["episodes"] >= episodes and all(known[key] == value for key, value in wanted.items()):
            return known
    shares = [len(part) for part in np.array_split(np.arange(episodes), min(evaluation.actors, episodes))]
    firsts = np.cumsum([0, *shares[:-1]])
    build = worker(EvaluatorActor, name=f"{policy} evaluator", threads=run.config.resources.worker_threads)
    with Clock(run, "evaluate") as clock:
        actors = [build.remote(str(run.path), policy) for _ in shares]
        plays = zip(actors, firsts, shares, strict=True)
        parts = result([actor.play.remote(int(first), share) for actor, first, share in plays])
        clock.add_cpu(sum(cpu for _, cpu in parts))
    played: EvaluationResult = functools.reduce(operator.add, [part for part, _ in parts])
    record = {**wanted, **played.summary()}
    stage = trained_by(policy)
    if stage is None or run.finished(stage) is not None:
        write_json(path, record)
    else:
        print(f"'{policy}' is still in training: what it did is not kept in the run", flush=True)
    return record
