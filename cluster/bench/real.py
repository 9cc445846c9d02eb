"""The real models of laptop size in the loop of stage 4 and in a plain one: what Ray costs, and what crosses its store.

The models are hardly trained: what they imagine is worthless, and takes as long as what trained ones do.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import ray
import torch

from cluster.bench.loop import spilled_bytes, stored_bytes
from cluster.config import configure
from cluster.models import load_agent, load_policy
from cluster.placement import result
from cluster.policy.autoscale import Autoscaler
from cluster.policy.coordinator import end, start_learner
from cluster.policy.ledger import Ledger
from cluster.policy.loop import ImaginationLoop
from cluster.policy.messages import Told
from cluster.policy.pool import Pool
from cluster.policy.rollout_rank import RolloutRank, build_worker
from cluster.policy.schedule import Plan
from cluster.policy.worker_group import WorkerSpec
from cluster.presets import preset
from cluster.registry.lease import LeaseKeeper
from cluster.run import Run
from cluster.stages import run_stage
from cluster.variants import VARIANTS
from dreamer4.types import Weights
from learners.policy import PolicyLearner

STAGES = ("collect", "tokenizer", "encode", "dynamics", "agent")
QUICK = [f"{stage}_training.steps=2" for stage in ("tokenizer", "dynamics", "agent")]
COUNTED = ("features_BTM", "act_out_BTA", "reward_BT", "continue_BT")  # what the learner needs of a rollout


@dataclass(frozen=True)
class Turn:
    """One turn of either loop, after its first update."""

    frames: int
    seconds: float
    store_over_payload: float = 0.0

    @property
    def frames_per_s(self) -> float:
        return self.frames / self.seconds


def prepare(path: Path) -> Run:
    """A run of laptop size that is ready for stage 4."""
    settings = ["data.frames=4000", "data.shard_frames=2000", *QUICK, "policy.steps=1000000"]
    run = Run.open(path, configure(preset("laptop"), settings))
    for stage in STAGES:
        run_stage(stage, run)
    return run


def plain_turn(run: Run, seconds: float) -> Turn:
    """Imagines and learns in this process, one after the other, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, config = load_agent(run), run.config
        worker = build_worker(run, VARIANTS["policy"], model.dynamics, model.heads)
        head = load_policy(run, "bc")
        learner = PolicyLearner(head, config.dynamics.feature_width, config.policy, config.seed)
        frames, begin, step = 0, 0.0, 0
        while step < 2 or time.monotonic() - begin < seconds:
            if step == 1:  # the first one warms up
                frames, begin = 0, time.monotonic()
            rollout = worker.rollout(step, Weights(step, learner.policy_weights()))
            learner.step(step, [rollout])
            frames += rollout.reward_BT.size
            step += 1
        return Turn(frames, time.monotonic() - begin)
    finally:
        torch.set_num_threads(threads)


class Watch(ImaginationLoop):
    """The loop, which looks at what its rollouts take in the store, and stops after a while."""

    seconds = 0.0

    def watch(self, seconds: float) -> Turn:
        self.seconds, self.sizes, self.first = seconds, list[float](), (0, 0.0)
        self.stopped = self._look
        self.run()
        frames, begin = self.first
        return Turn(self.throughput.frames - frames, self.end - begin, sum(self.sizes) / max(1, len(self.sizes)))

    def _look(self) -> bool:
        self.end = time.monotonic()
        if self.first[1] == 0.0:
            if self.schedule.updates < 1:
                return False
            self.first = self.throughput.frames, self.end
        if self.schedule.arrived and len(self.sizes) < 20:
            reference = next(iter(self.schedule.arrived.values()))
            rollout = ray.get(reference)
            payload = sum(getattr(rollout, name).nbytes for name in COUNTED)
            self.sizes.append(stored_bytes([reference]) / payload)
        return self.end - self.first[1] >= self.seconds


def ray_turn(run: Run, seconds: float, workers: int = 1) -> Turn:
    """The loop with workers and learner in processes of their own; its driver is this process."""
    policy = run.config.policy
    plan = Plan(policy.steps, policy.rollouts_per_step, policy.max_staleness, policy.steps)
    ledger = Ledger(run.path, "bench")
    with LeaseKeeper(run.path, "dreamer4 bench loop") as keeper:
        learner = start_learner(run, VARIANTS["policy"])
        pool = Pool(
            WorkerSpec(RolloutRank, (str(run.path), VARIANTS["policy"])), "bench real", workers, 600, ledger.note, set
        )
        loop = Watch(plan, pool, learner, keeper.lease, ledger, Autoscaler(workers, workers, 1e9, workers))
        try:
            told: Told = result(learner.position.remote(keeper.lease))
            assert told.updates == 0, "nothing is saved, so every turn begins anew"
            return loop.watch(seconds)
        finally:
            pool.close()
            end(run, "policy", "learner", patience=60)


def long_run(run: Run, minutes: float, workers: int) -> int:
    """Bytes that were spilled in a long turn."""
    before = spilled_bytes()
    ray_turn(run, 60 * minutes, workers)
    return spilled_bytes() - before
