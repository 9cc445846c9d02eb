"""Policies judged in the real environment, by evaluators in parallel (paper, section 4.1 and appendix)."""

import json
from pathlib import Path
from typing import Any

from actors.evaluator import AgentPolicy, DemonstratorPolicy, EvaluationResult, Evaluator, RandomPolicy
from cluster.clock import Clock
from cluster.models import load_agent, load_policy, load_tokenizer
from cluster.placement import result, worker
from cluster.run import Run
from cluster.telemetry import Progress
from dreamer4.files import write_json

BASELINES = ("random", "demonstrator")


def build_policy(run: Run, name: str) -> Any:
    """A policy as evaluators play it: `random`, `demonstrator`, `bc`, `filtered_bc`, `pmpo` or a control of stage 4."""
    config = run.config
    if name == "random":
        return RandomPolicy(config.dynamics.space, config.seed)
    if name == "demonstrator":
        return DemonstratorPolicy(config.env, config.seed)
    tokenizer, agent = load_tokenizer(run), load_agent(run)
    return AgentPolicy(tokenizer, agent.dynamics, load_policy(run, name), config.shortcut, config.seed)


class EvaluatorActor:
    """Plays some of the episodes in a process of its own."""

    def __init__(self, path: str, policy: str):
        self.run, self.policy = Run.attach(Path(path)), policy

    def play(self, first: int, episodes: int) -> EvaluationResult:
        evaluation = self.run.config.evaluation
        evaluator = Evaluator(self.run.config.env, evaluation.parallel, evaluation.first_seed)
        return evaluator.play(build_policy(self.run, self.policy), first, episodes)


def evaluate_policy(run: Run, policy: str, episodes: int | None = None) -> dict[str, Any]:
    """Plays `episodes` (default: the config's), or returns what an earlier start played."""
    evaluation, resources = run.config.evaluation, run.config.resources
    episodes = episodes or evaluation.episodes
    path = run.path / "evaluation" / f"{policy}.json"
    if path.exists():
        known = json.loads(path.read_text())
        if known["episodes"] == episodes and known["first_seed"] == evaluation.first_seed:
            return known
    return {}
