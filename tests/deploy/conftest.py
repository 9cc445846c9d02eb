import os
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="session")
def deploy() -> Path:
    return DEPLOY


@pytest.fixture(autouse=True)
def no_cluster_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts behave differently where a cluster is named."""
    for name in [name for name in os.environ if name.startswith(("RAY_", "SLURM_"))]:
        monkeypatch.delenv(name)
