"""A client that has lost touch with its coordinator, as happens to one that lived through the loss of the head."""

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError

from cluster.config import configure
from cluster.policy import improve
from cluster.policy.coordinator import DONE, Status
from cluster.presets import smoke
from cluster.registry.lease import LeaseKeeper
from cluster.run import Run
from dreamer4.errors import RunError


class Silent:
    """A handle whose calls are never answered."""

    status = None

    def __init__(self) -> None:
        self.status = self

    def remote(self) -> str:
        return "a reference"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(improve, "SILENCE_SECONDS", 0.0)
    with Run.open(tmp_path / "run", configure(smoke(), [])) as made:
        return made


def unanswered(monkeypatch: pytest.MonkeyPatch, meanwhile: Any = lambda: None, answers: Any = None) -> None:
    def get(reference: str, timeout: float) -> Status:
        meanwhile()
        if answers:
            return answers.pop(0)
        raise GetTimeoutError

    monkeypatch.setattr(improve.ray, "get", get)


def test_it_hears_of_the_end_from_the_run_itself(run, monkeypatch):
    with LeaseKeeper(run.path, "the coordinator"):
        unanswered(monkeypatch, lambda: run.finish("policy", {}))
        status = improve._ask(Silent(), run, "policy")
    assert (status.state, status.step) == (DONE, run.config.policy.steps)


def test_it_waits_as_long_as_somebody_drives_the_run_and_no_longer(run, monkeypatch):
    keeper, asked = LeaseKeeper(run.path, "the coordinator"), []

    def meanwhile() -> None:
        asked.append(True)
        if len(asked) == 3:
            keeper.__exit__(None, None, None)

    unanswered(monkeypatch, meanwhile)
    with keeper, pytest.raises(RunError, match=r"not driven by anybody any more.*the same command goes on"):
        improve._ask(Silent(), run, "policy")
    assert len(asked) == 3
