"""A node that is told that it will be taken away: its workers finish, its learner commits, and both move on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from cluster.bench.stand_in import Costs, StandInLearner, StandInRank, plain_loop
from cluster.local.cluster import LocalCluster
from cluster.nodes import draining_nodes, node_of
from cluster.policy.autoscale import Autoscaler
from cluster.policy.ledger import Ledger, broken_promises, read_ledger
from cluster.policy.loop import ImaginationLoop
from cluster.policy.pool import Pool
from cluster.policy.schedule import Plan
from cluster.policy.worker_group import READY, WorkerSpec

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.xdist_group("ray")]

COSTS = Costs(rollout_seconds=0.2, update_seconds=0.1)


def test_workers_of_a_draining_node_finish_and_move(tmp_path: Path) -> None:
    plan = Plan(100, 2, 1, save_every=20)
    ledger = Ledger(tmp_path, "stand-in")
    with LocalCluster(dashboard=False) as cluster:
        cluster.add_node(cpus=1, resources={"learner": 1})
        nodes = [cluster.add_node(cpus=2) for _ in range(2)]
        told: list[str] = []
        with cluster.connected():
            learner: Any = ray.remote(StandInLearner).options(resources={"learner": 1}).remote(COSTS, tmp_path)
            pool = Pool(WorkerSpec(StandInRank, (COSTS,)), "draining", 2, 600, ledger.note, draining_nodes)

            def notice() -> bool:
                if not told and loop.schedule.updates >= 10 and pool.counts[READY] == 2:
                    (there,) = pool.groups[0].nodes
                    told.append(there)
                    cluster.drain_node(next(node for node in nodes if node.node_id == there), deadline=600)
                return False

            loop = ImaginationLoop(plan, pool, learner, 0, ledger, Autoscaler(2, 2, 1e9, 2), stopped=notice)
            try:
                loop.run()
                assert pool.counts[READY] == 2
                assert not any(told[0] in group.nodes for group in pool.groups), "none is there any more"
            finally:
                pool.close()
    events = read_ledger(tmp_path)
    assert broken_promises(events, plan.steps, plan.save_every) == []
    moved = [event for event in events if event.get("reason") == "its node is going away"]
    assert 1 <= len(moved) <= 2 and pool.made == 2 + len(moved)
    assert not any(event["event"] == "lost" for event in events), "nothing was imagined twice"


def test_the_learner_of_a_draining_node_commits_and_moves(tmp_path: Path) -> None:
    plan = Plan(60, 2, 1, save_every=50)
    ledger = Ledger(tmp_path, "stand-in")
    with LocalCluster(dashboard=False) as cluster:
        cluster.add_node(cpus=2)
        nodes = [cluster.add_node(cpus=1, resources={"learner": 1}) for _ in range(2)]
        told: list[str] = []
        with cluster.connected():
            options: dict[str, Any] = {"resources": {"learner": 1}, "max_restarts": -1, "max_task_retries": -1}
            learner: Any = ray.remote(StandInLearner).options(**options).remote(COSTS, tmp_path)
            pool = Pool(WorkerSpec(StandInRank, (COSTS,), cpus=0.5), "moving", 2, 600, ledger.note, draining_nodes)

            def notice() -> bool:
                if not told and loop.schedule.updates >= 20:
                    told.append(node_of(learner))
                    cluster.drain_node(next(node for node in nodes if node.node_id == told[0]), deadline=600)
                return False

            loop = ImaginationLoop(plan, pool, learner, 0, ledger, Autoscaler(2, 2, 1e9, 2), stopped=notice)
            try:
                loop.run()
                assert node_of(learner) not in told
                state = ray.get(learner.final.remote())
            finally:
                pool.close()
    events = read_ledger(tmp_path)
    assert broken_promises(events, plan.steps, plan.save_every) == []
    (move,) = [event for event in events if event["event"] == "move"]
    assert 20 <= move["updates"] < plan.steps, "in mid-run"
    assert len({event["process"] for event in events if event["event"] == "applied"}) == 2
    assert [event["step"] for event in events if event["event"] == "applied"] == list(range(plan.steps))
    undisturbed = StandInLearner(Costs())
    assert list(plain_loop(plan, StandInRank(Costs()), undisturbed)) == list(range(plan.steps))
    np.testing.assert_array_equal(state, undisturbed.final())
