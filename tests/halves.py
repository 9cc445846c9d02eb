"""What the ranks of a policy learner run in the tests. A mesh of None stands for one process with all the rollouts."""

from typing import Any

import torch
from factories import lively
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from dreamer4.actions import ActionSpace
from dreamer4.heads import PolicyHead
from dreamer4.rng import generator
from dreamer4.types import Rollout
from learners.optim import OptimConfig
from learners.parallel import Parallel
from learners.policy import PolicyLearner, PolicyTraining

WIDTH, HORIZON, BATCH, ROLLOUTS = 6, 5, 4, 4
SPACE = ActionSpace.discrete(3)
OPTIM = OptimConfig(lr=1e-2, warmup_steps=0, clip=1e9)  # gradients stay as they are
TRAINING = PolicyTraining(
    steps=20, warmup_steps=0, value_hidden=8, value_layers=1, bins=21, policy_optim=OPTIM, value_optim=OPTIM
)


class Alone(Parallel):
    """The mistake: every rank counts its own samples only, and the gradients are summed all the same."""

    def total(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        return losses


def make_learner(parallel: Parallel) -> PolicyLearner:
    learner = PolicyLearner(lively(PolicyHead(WIDTH, 8, 1, 2, SPACE)).train(), WIDTH, TRAINING, parallel=parallel)
    lively(learner.value, 100).train()
    lively(learner.prior, 200)  # as if policy and prior had parted before
    return learner


def rollout(index: int) -> Rollout:
    """Every other one is bad: two ranks that take turns have other shares of positive advantages."""
    draw = generator("rollout", index)
    return Rollout(
        features_BTM=torch.randn((BATCH, HORIZON + 1, WIDTH), generator=draw).numpy(),
        act_out_BTA=SPACE.random(BATCH * HORIZON, draw).unflatten(0, (BATCH, HORIZON)).numpy(),
        log_prob_BT=torch.zeros(BATCH, HORIZON).numpy(),
        reward_BT=(torch.randn((BATCH, HORIZON), generator=draw) + (2 if index % 2 else -1)).numpy(),
        continue_BT=torch.rand((BATCH, HORIZON), generator=draw).pow(0.2 if index % 2 else 1).numpy(),
        task_B=torch.zeros(BATCH, dtype=torch.long).numpy(),
        index=index,
        version=0,
    )


def updates(mesh: DeviceMesh | None, steps: int = 1, kind: type[Parallel] = Parallel) -> dict[str, Any]:
    """Metrics of the first update; gradients and weights after the last."""
    rank, world = (0, 1) if mesh is None else (mesh.get_local_rank(), mesh.size())
    learner = make_learner(kind(rank=rank, world=world))
    rows = []
    for step in range(steps):
        batch = [rollout(ROLLOUTS * step + i) for i in range(ROLLOUTS)]
        rows.append(learner.step(step, batch[rank::world]))
    parameters = [*learner.policy.named_parameters("policy"), *learner.value.named_parameters("value")]
    return {
        "metrics": rows[0],
        "gradients": {name: p.grad.clone() for name, p in parameters if p.grad is not None},
        "weights": {name: p.detach().clone() for name, p in parameters},
    }


def poisoned_update(mesh: DeviceMesh) -> None:
    """Only the last rank's rollouts hold a number that isn't finite."""
    rank, world = mesh.get_local_rank(), mesh.size()
    learner = make_learner(Parallel(rank=rank, world=world))
    mine = rollout(rank)
    if rank == world - 1:
        mine.reward_BT[0, 0] = float("nan")
    learner.step(0, [mine])
