"""A rank of an imagination worker, in a process of its own: the whole world model, or a shard of it."""

import time
from pathlib import Path

from actors.imagination import ImaginationWorker
from cluster.models import RunData, choose_device, load_agent, load_agent_share
from cluster.policy.messages import Cost, StaleWeightsError
from cluster.run import Run
from cluster.variants import Variant
from dreamer4.agent import Heads
from dreamer4.dynamics import Dynamics
from dreamer4.types import Rollout, Weights
from learners.process_group import init_shard, reserve

ARRAYS = ("features_BTM", "act_out_BTA", "log_prob_BT", "reward_BT", "continue_BT", "task_B")


def build_worker(run: Run, variant: Variant, dynamics: Dynamics, heads: Heads) -> ImaginationWorker:
    """The plain worker around a world model, with its contexts; until it is told another, its policy is the clone."""
    imagination, batch = variant.imagination(run.config)
    return ImaginationWorker(
        dynamics,
        heads,
        heads.policy,
        RunData(run).contexts(),
        run.config.shortcut,
        imagination,
        batch,
        run.config.seed,
        variant.shuffle_actions,
    )


class RolloutRank:
    """What `cluster.policy.worker_group.WorkerSpec` asks for, around an `ImaginationWorker`.

    Every rank loads the models from the run's files by itself, and all of them imagine the same rollout; rank 0's is
    the one that is used.
    """

    def __init__(self, path: str, variant: Variant, rank: int, shards: int):
        self.run, self.variant, self.rank, self.shards = Run.attach(Path(path)), variant, rank, shards
        self.told = 0.0
        self.reserved = None

    def endpoint(self) -> tuple[str, int]:
        """Where the other ranks meet this one: an address of their node and a port that it has reserved."""
        address = "127.0.0.1"  # the ranks of a group are on one node, and nobody else is to talk to them
        self.reserved = reserve(address)
        return address, self.reserved.getsockname()[1]

    def load(self, endpoint: tuple[str, int] | None) -> None:
        """Loads the models; with an endpoint, joins the other ranks there and keeps a shard of the world model."""
        if endpoint is None:
            model = load_agent(self.run)
        else:
            backend = "nccl" if choose_device(self.run).type == "cuda" else "gloo"
            mesh = init_shard(self.rank, self.shards, *endpoint, backend, self.reserved)
            model = load_agent_share(self.run, mesh)
        self.worker = build_worker(self.run, self.variant, model.dynamics, model.heads)

    def rollout(self, index: int, version: int, weights: Weights) -> tuple[Cost, Rollout | None]:
        """Rollout number `index`; raises `StaleWeightsError` if the weights are not those of the version."""
        StaleWeightsError.check(index, version, weights.version)
        begin = time.monotonic()
        rollout = self.worker.rollout(index, weights)
        seconds, cpu = time.monotonic() - begin, time.process_time()
        spent, self.told = cpu - self.told, cpu
        size = sum(getattr(rollout, name).nbytes for name in ARRAYS)
        cost = Cost(rollout.reward_BT.size, seconds, spent, size)
        return cost, rollout if self.rank == 0 else None
