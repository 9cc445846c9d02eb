"""Stage 4 as the command line runs it, with real models on a real Ray: coordinator, worker, learner, object store."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from states import assert_equal, same

from benchmarks.drill import copy_of, prepare
from cluster.models import load_agent, load_policy
from cluster.policy import improve
from cluster.policy.coordinator import NAMESPACE, actor_name
from cluster.policy.improve import improve_policy
from cluster.policy.ledger import broken_promises, read_ledger
from cluster.policy.messages import Request
from cluster.policy.pool import Arrived, Lost, Pool
from cluster.policy.rollout_rank import RolloutRank, build_worker
from cluster.policy.telemetry import METRICS, read_telemetry
from cluster.policy.worker_group import WorkerSpec
from cluster.registry.registry import open_registry
from cluster.run import Run
from cluster.settings import override
from cluster.telemetry import read_metrics
from cluster.variants import VARIANTS
from dreamer4.errors import NonFiniteError, RunError
from dreamer4.types import Weights
from learners.policy import PolicyLearner

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_up"), pytest.mark.xdist_group("ray")]

STEPS = 12
SETTINGS = [f"policy.steps={STEPS}", "policy.save_every=4", "policy.rollouts_per_step=2", "policy.warmup_steps=1"]


@pytest.fixture(scope="module")
def prepared(ray_up: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is ready for stage 4, with staleness 0."""
    path = tmp_path_factory.mktemp("prepared") / "run"
    prepare(path, [*SETTINGS, "policy.max_staleness=0"])
    return path


def improved(prepared: Path, path: Path, *settings: str) -> Run:
    """A copy after stage 4; settings are of this start."""
    with Run.open(copy_of(prepared, path), override(Run.attach(prepared).config, settings)) as run:
        improve_policy(run)
    return run


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return improved(prepared, tmp_path_factory.mktemp("whole") / "run")


def policy(run: Run) -> dict[str, torch.Tensor]:
    saved = run.checkpoints("policy").load()
    assert saved.step == STEPS
    return saved.weights


def plain(run: Run, staleness: int) -> dict[str, torch.Tensor]:
    """The same updates in this process, without Ray, one thing after the other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model, config = load_agent(run), run.config
    worker = build_worker(run, VARIANTS["policy"], model.dynamics, model.heads)
    head = load_policy(run, "bc")
    learner = PolicyLearner(head, config.dynamics.feature_width, config.policy, config.seed)
    versions = [learner.policy_weights()]
    for step in range(STEPS):
        version = max(0, step - staleness)
        rollouts = [worker.rollout(index, Weights(version, versions[version])) for index in (2 * step, 2 * step + 1)]
        learner.step(step, rollouts)
        versions.append(learner.policy_weights())
    torch.set_num_threads(threads)
    return {name: value.clone() for name, value in learner.weights().items()}


def test_without_staleness_it_equals_a_plain_loop_bit_for_bit(whole: Run) -> None:
    assert_equal(policy(whole), plain(whole, 0))
    assert not same(policy(whole), plain(whole, 1)), "negative control"


def test_two_workers_do_the_same_bit_for_bit(whole: Run, prepared: Path, tmp_path: Path) -> None:
    two = improved(prepared, tmp_path / "two", "resources.workers=2")
    assert_equal(policy(two), policy(whole))
    assert {row["workers_wanted"] for row in read_telemetry(two.path)} == {2}


def test_a_world_model_in_two_shards_imagines_the_same_and_dies_as_a_whole(whole: Run) -> None:
    """Sums are taken in another order, so features are the same but for rounding."""
    model = load_agent(whole)
    worker = build_worker(whole, VARIANTS["policy"], model.dynamics, model.heads)
    weights = Weights(0, {name: value.numpy() for name, value in load_policy(whole, "bc").state_dict().items()})
    expected = worker.rollout(3, weights)
    notes: list[dict] = []
    spec = WorkerSpec(RolloutRank, (str(whole.path), VARIANTS["policy"]), shards=2)
    pool = Pool(spec, "test shards", 1, 60, lambda event, **facts: notes.append(facts), set)

    def answer(index: int) -> Arrived | Lost:
        while not (places := pool.places()):
            pool.reconcile(time.monotonic())
            owners = pool.owners()
            for ref in ray.wait(list(owners), timeout=0.1)[0]:
                assert pool.collect(ref, owners[ref]) is None
        group = places[0]
        group.submit(Request(index, 0, 0), ray.put(weights))
        if index == 4:
            kill_rank(group.ranks[1])
        while True:
            owners = pool.owners()
            for ref in ray.wait(list(owners), timeout=1)[0]:
                if (outcome := pool.collect(ref, owners[ref])) is not None:
                    return outcome

    try:
        arrived = answer(3)
        assert isinstance(arrived, Arrived)
        rollout = ray.get(arrived.rollout)
        np.testing.assert_array_equal(rollout.act_out_BTA, expected.act_out_BTA)
        for name in ("features_BTM", "reward_BT", "continue_BT", "log_prob_BT"):
            np.testing.assert_allclose(getattr(rollout, name), getattr(expected, name), rtol=1e-4, atol=1e-4)
        lost = answer(4)
        assert isinstance(lost, Lost) and [request.index for request in lost.requests] == [4]
        again = answer(3)
        assert isinstance(again, Arrived), "a new group of two"
        np.testing.assert_array_equal(ray.get(again.rollout).features_BTM, rollout.features_BTM)
        assert [note["state"] for note in notes].count("ready") == 2
    finally:
        pool.close()


def kill_rank(rank: Any) -> None:
    os.kill(ray._private.state.actors(rank._actor_id.hex())["Pid"], signal.SIGKILL)


def test_it_leaves_a_ledger_telemetry_and_metrics(whole: Run) -> None:
    assert broken_promises(read_ledger(whole.path, "policy"), STEPS, 4) == []
    assert [row["step"] for row in read_metrics(whole.metrics_path, "policy")] == list(range(STEPS))
    rows = read_telemetry(whole.path, "policy")
    assert rows and all(row.keys() == {*METRICS, "stage", "time"} for row in rows)
    assert rows[-1]["imagined_frames"] == 2 * STEPS * whole.config.policy.batch * whole.config.imagination.horizon
    facts = open_registry(whole.path).read()
    assert (facts["stage"], facts["state"], facts["step"], facts["holder"]) == ("policy", "done", STEPS, None)
    assert whole.finished("policy")["steps"] == STEPS


def test_nothing_of_a_finished_run_is_left(whole: Run) -> None:
    deadline = time.monotonic() + 30
    names = {actor_name(whole, "policy", role) for role in ("coordinator", "learner")}
    while (left := names & _named()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def _named() -> set[str]:
    return {one["name"] for one in ray.util.list_named_actors(all_namespaces=True) if one["namespace"] == NAMESPACE}


def test_stopped_run_commits_and_goes_on_to_the_same_bits(
    whole: Run, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run.open(copy_of(prepared, tmp_path / "run")) as run:

        def stop() -> None:
            while len(read_metrics(run.metrics_path, "policy")) < 2:
                time.sleep(0.01)
            ray.get(ray.get_actor(actor_name(run, "policy", "coordinator"), namespace=NAMESPACE).stop.remote())

        monkeypatch.setattr(improve, "POLL_SECONDS", 0.05)
        thread = threading.Thread(target=stop)
        thread.start()
        with pytest.raises(RunError, match=r"was stopped after \d+ updates: the same command goes on"):
            improve_policy(run)
        thread.join()
        done = run.checkpoints("policy").latest()
        assert done is not None and 2 <= done < STEPS
        improve_policy(run)
    starts = [event["updates"] for event in read_ledger(run.path) if event["event"] == "start"]
    assert starts == [0, done], "nothing was done twice"
    assert_equal(policy(run), policy(whole))


def test_an_update_that_is_not_finite_ends_the_run_with_its_sentence(prepared: Path, tmp_path: Path) -> None:
    settings = ["policy.value_optim.lr=1e30", "policy.policy_optim.lr=1e30"]
    path = copy_of(prepared, tmp_path / "run")
    (path / "config.json").unlink()
    with Run.open(path, override(Run.attach(prepared).config, settings)) as run:
        _trust(run, prepared)
        with pytest.raises(NonFiniteError, match=r"policy: .* at step \d+; the weights were not updated"):
            improve_policy(run)


def _trust(run: Run, prepared: Path) -> None:
    """The checkpoints before stage 4 are those of another config: write them again under this one."""
    old = Run.attach(prepared)
    for stage in ("tokenizer", "dynamics", "agent"):
        saved = old.checkpoints(stage).load()
        run.checkpoints(stage).save(saved.step, saved.weights, saved.state, run.identity())
