"""A coordinator on a node that was cut off, when the cable is back: the run is driven by a later start of it."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config import configure
from cluster.policy import coordinator as module
from cluster.policy.coordinator import FAILED, Coordinator
from cluster.presets import smoke
from cluster.registry.lease import LeaseKeeper
from cluster.registry.registry import open_registry
from cluster.run import Run
from dreamer4.errors import LeaseLostError, RunError


def test_later_start_of_the_same_holder_supersedes_and_another_holder_does_not(any_run):
    with LeaseKeeper(any_run, "coordinator of a Ray") as first:
        assert not first.superseded()
        with LeaseKeeper(any_run, "coordinator of a Ray") as second:
            assert first.superseded() and not second.superseded()
        assert first.superseded(), "also when that one has ended"
        with LeaseKeeper(any_run, "coordinator of another Ray") as third:
            assert not first.superseded(), "its learner is another one's than ours"
            assert not third.superseded()


def test_who_reaches_no_registry_takes_itself_for_superseded(any_run, monkeypatch):
    with LeaseKeeper(any_run, "coordinator") as keeper:

        def unreachable() -> None:
            raise RunError("no route to host")

        with monkeypatch.context() as patch:
            patch.setattr(keeper.registry, "read", unreachable)
            assert keeper.superseded()


@pytest.fixture
def ends(any_run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Drives a run to a failure in the loop, and gives what was killed by its name afterwards."""
    Run.open(any_run, configure(smoke(), [])).close()
    killed: list[str] = []
    context = SimpleNamespace(gcs_address="10.0.0.1:6379")
    monkeypatch.setattr(module.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(module, "remove_left_over", lambda name: None)
    monkeypatch.setattr(module, "start_learner", lambda *arguments: None)
    monkeypatch.setattr(module, "end", lambda run, stage, role: killed.append(role))
    monkeypatch.setattr(module, "LINGER", 0.0)

    def drive(meanwhile: Callable[[LeaseKeeper], None]) -> list[str]:
        def fail(self: Coordinator, learner: Any, keeper: LeaseKeeper, clock: Any) -> None:
            meanwhile(keeper)
            raise LeaseLostError("the loop noticed it")

        monkeypatch.setattr(Coordinator, "_loop", fail)
        coordinator = Coordinator(str(any_run), "policy")
        for thread in threading.enumerate():
            if thread.name == "imagination loop":
                thread.join(60)
        assert coordinator.state == FAILED and isinstance(coordinator.error, LeaseLostError)
        return killed

    return drive


def test_superseded_coordinator_leaves_learner_and_name_to_its_successor(ends, any_run):
    """`benchmarks.hosts` found it: the one that came back killed the learner of the one that had taken over."""
    later = ExitStack()
    with later:
        assert ends(lambda keeper: later.enter_context(LeaseKeeper(any_run, keeper.holder))) == []
        assert "state" not in open_registry(any_run).read(), "nor does it say that the run has failed"


def test_coordinator_that_fails_by_itself_takes_its_learner_with_it(ends, any_run):
    assert ends(lambda keeper: None) == ["learner", "coordinator"]
    told = open_registry(any_run).read()
    assert (told["stage"], told["state"], told["holder"]) == ("policy", FAILED, None)
