import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.presets import smoke
from cluster.runtime import ray_session

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="package")
def ray_up() -> Iterator[str]:
    """A real local Ray with room for two actors; gives the address of its dashboard."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        patch.setenv("PYTHONPATH", f"{TESTS.parent}{os.pathsep}{TESTS}")  # actors import their classes from there
        patch.setenv("TMPDIR", os.sep + os.path.join("tmp", "x" * 150))  # longer than a socket's path may be
        with ray_session(smoke()) as dashboard:
            yield dashboard
