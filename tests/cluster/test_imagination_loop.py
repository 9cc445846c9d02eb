"""The loop's promises on a real Ray, with stand-ins for the models: order, weights, bounds, and recovery."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from living import eventually

from cluster.bench.stand_in import Costs, StandInLearner, StandInRank, plain_loop
from cluster.policy import pool as pool_module
from cluster.policy.autoscale import Autoscaler
from cluster.policy.ledger import Ledger, broken_promises, read_ledger
from cluster.policy.loop import ImaginationLoop
from cluster.policy.pool import Pool
from cluster.policy.schedule import Plan
from cluster.policy.worker_group import WorkerSpec, remove_left_over
from dreamer4.errors import RunError

pytestmark = [pytest.mark.usefixtures("ray_up"), pytest.mark.xdist_group("ray")]


def run_loop(
    folder: Path,
    plan: Plan,
    workers: int = 2,
    costs: Costs = Costs(),  # noqa: B008 - frozen
    disturb: Callable[[ImaginationLoop], None] = lambda loop: None,
    build: type = StandInRank,
) -> tuple[np.ndarray, list[dict[str, Any]], ImaginationLoop]:
    """A run with stand-ins; returns the learner's final state, the ledger, and the loop."""
    learner = (
        ray.remote(StandInLearner)
        .options(max_restarts=-1, max_task_retries=-1, num_cpus=0.1)
        .remote(costs, folder, plan.max_staleness + 1)
    )
    ledger = Ledger(folder, "policy")
    pool = Pool(WorkerSpec(build, (costs,), cpus=0.1), f"test {folder}", workers, 60, ledger.note, set)
    rows: list[dict] = []

    def stopped() -> bool:
        disturb(loop)
        assert len(pool.owners()) <= plan.capacity + 2 * len(pool.groups)
        return False

    loop = ImaginationLoop(plan, pool, learner, 0, ledger, Autoscaler(1, 8, 1e9, workers), rows.append, stopped)
    try:
        loop.run()
        state = ray.get(learner.final.remote())
    finally:
        pool.close()
        ray.kill(learner)
    assert rows[-1]["step"] == plan.steps
    return state, read_ledger(folder), loop


def plainly(plan: Plan) -> np.ndarray:
    learner = StandInLearner(Costs(), keep=plan.max_staleness + 1)
    assert list(plain_loop(plan, StandInRank(Costs()), learner)) == list(range(plan.steps))
    return learner.final()


@pytest.mark.parametrize(("staleness", "per_step", "workers"), [(0, 3, 2), (3, 1, 3)])
def test_any_number_of_workers_does_what_a_plain_loop_does_bit_for_bit(tmp_path, staleness, per_step, workers):
    """And nothing of it is left over. One worker is in `test_weights_of_another_version_are_asked_for_again`."""
    plan = Plan(25, per_step, staleness, save_every=10)
    state, events, loop = run_loop(tmp_path, plan, workers)
    np.testing.assert_array_equal(state, plainly(plan))
    assert broken_promises(events, plan.steps, plan.save_every) == []
    assert loop.throughput.rollouts == plan.steps * per_step
    assert max(loop.throughput.lags, default=0) <= staleness
    assert remove_left_over(f"test {tmp_path}") == 0
    assert eventually(lambda: alive("StandIn") == [])


def test_another_staleness_gives_another_result():
    """Negative control of the test above: the state tells which weights were used."""
    assert not np.array_equal(plainly(Plan(25, 2, 0)), plainly(Plan(25, 2, 1)))


def process_of(handle: Any) -> int:
    return ray._private.state.actors(handle._actor_id.hex())["Pid"]


class Killer:
    """Kills something once, as soon as some updates are applied and there is a victim."""

    def __init__(self, victim: Callable[[ImaginationLoop], int | None], after: int):
        self.victim, self.after, self.killed_at = victim, after, -1

    def __call__(self, loop: ImaginationLoop) -> None:
        if self.killed_at < 0 and loop.schedule.updates >= self.after and (process := self.victim(loop)) is not None:
            self.killed_at = loop.schedule.updates
            os.kill(process, signal.SIGKILL)


SLOW = Costs(rollout_seconds=0.05, update_seconds=0.05)


def test_a_killed_worker_is_replaced_and_its_rollouts_imagined_again(tmp_path):
    plan = Plan(40, 2, 1, save_every=10)
    kill = Killer(lambda loop: next((process_of(g.ranks[0]) for g in loop.pool.groups if g.requests), None), 12)
    state, events, loop = run_loop(tmp_path, plan, 2, SLOW, kill)
    np.testing.assert_array_equal(state, plainly(plan))
    assert 12 <= kill.killed_at < plan.steps, "it was hit in mid-run"
    redone = [index for event in events if event["event"] == "lost" for index in event["indices"]]
    assert redone, "rollouts were under way"
    assert loop.pool.lost == 1
    assert broken_promises(events, plan.steps, plan.save_every) == []


def test_a_killed_learner_comes_back_from_its_checkpoint_and_its_updates_are_done_again(tmp_path):
    plan = Plan(40, 2, 1, save_every=10)
    kill = Killer(lambda loop: process_of(loop.learner), 17)
    state, events, _ = run_loop(tmp_path, plan, 2, SLOW, kill)
    np.testing.assert_array_equal(state, plainly(plan))
    (rewind,) = [event for event in events if event["event"] == "rewind"]
    assert rewind["updates"] == 10 and rewind["expected"] >= 17
    steps = [event["step"] for event in events if event["event"] == "applied"]
    assert steps == [*range(rewind["expected"]), *range(10, plan.steps)]
    assert len({event["process"] for event in events if event["event"] == "applied"}) == 2
    assert broken_promises(events, plan.steps, plan.save_every) == []


def test_weights_of_another_version_are_asked_for_again_of_the_learner(tmp_path):
    """As a restarted learner may answer a reference that was lost; the worker is well and stays."""
    plan = Plan(20, 2, 1, save_every=10)
    state, events, loop = run_loop(tmp_path, plan, 1, SLOW, build=MisledRank)
    np.testing.assert_array_equal(state, plainly(plan))
    (lost,) = [event for event in events if event["event"] == "lost"]
    assert len(lost["indices"]) == 1 and "StaleWeightsError" in lost["reason"]
    assert loop.pool.lost == 0 and loop.pool.made == 1


def test_a_ledger_with_a_gap_or_a_lost_checkpoint_is_found_out(tmp_path):
    """Negative control of `broken_promises`."""
    applied = [{"event": "applied", "step": step} for step in range(10)]
    saved = {"event": "saved", "updates": 10}
    assert broken_promises([*applied, saved], 10, 5) == []
    assert len(broken_promises([*applied[:4], *applied[5:], saved], 10, 5)) == 1
    assert len(broken_promises(applied, 10, 5)) == 1
    back = [{"event": "saved", "updates": 6}, {"event": "rewind", "updates": 3}]
    assert len(broken_promises([*applied[:6], *back, *applied[3:], saved], 10, 5)) == 1


def test_workers_that_only_fail_end_the_run_with_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "FAILURES", 3)  # every further one waits twice as long as the one before
    with pytest.raises(RunError, match=r"workers failed 3 times .*no GPU here.*see the logs"):
        run_loop(tmp_path, Plan(5), 1, build=BrokenRank)


def test_a_loop_whose_learner_finds_no_place_goes_on_counting_and_can_be_stopped(tmp_path):
    learner = ray.remote(StandInLearner).options(resources={"nowhere": 1}).remote(Costs(), tmp_path)
    ledger, shown, asked = Ledger(tmp_path, "policy"), [], []
    pool = Pool(WorkerSpec(StandInRank, (Costs(),), cpus=0.1), f"test {tmp_path}", 1, 60, ledger.note, set)

    def stopped() -> bool:
        asked.append(True)
        return len(shown) > 0

    loop = ImaginationLoop(Plan(5), pool, learner, 0, ledger, Autoscaler(1, 1, 1e9, 1), shown.append, stopped)
    try:
        loop.run()
    finally:
        pool.close()
        ray.kill(learner)
    assert len(asked) > 1 and shown[0]["step"] == 0 and loop.sought is not None
    assert not any(event["event"] in ("start", "applied") for event in read_ledger(tmp_path))


def alive(name: str) -> list[int]:
    """Processes of actors whose class begins like that."""
    found = psutil.process_iter(["cmdline"])
    return [one.pid for one in found if any(f"ray::{name}" in word for word in one.info["cmdline"] or [])]


class MisledRank(StandInRank):
    misled = False

    def rollout(self, index: int, version: int, weights: Any) -> Any:
        if index >= 8 and not self.misled:
            self.misled = True
            weights = replace(weights, version=version + 1)
        return super().rollout(index, version, weights)


class BrokenRank(StandInRank):
    def rollout(self, index: int, version: int, weights: Any) -> Any:
        raise RuntimeError("no GPU here")
