import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis_server import RedisServer

from cluster.presets import smoke
from cluster.runtime import ray_session
from cluster.settings import override

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="package")
def ray_up() -> Iterator[str]:
    """A real local Ray with room for a learner and two workers; gives the address of its dashboard."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        patch.setenv("PYTHONPATH", f"{TESTS.parent}{os.pathsep}{TESTS}")  # actors import their classes from there
        patch.setenv("TMPDIR", os.sep + os.path.join("tmp", "x" * 150))  # longer than a socket's path may be
        with ray_session(override(smoke(), ["resources.workers=2"])) as dashboard:
            yield dashboard


@pytest.fixture
def interrupts() -> Iterator[None]:
    """The command line sets the handler of SIGINT; this sets it back."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="package")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis for tests that don't harm it; each works in a run directory of its own."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def directory_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A run directory that keeps its own lease."""
    monkeypatch.delenv("DREAMER4_REGISTRY", raising=False)
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def redis_run(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A run directory whose lease is in Redis."""
    monkeypatch.setenv("DREAMER4_REGISTRY", redis_server.url)
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture(params=["directory", "redis"])
def any_run(request: pytest.FixtureRequest) -> Path:
    """Either of them: what is tested with it is the contract of all registries."""
    return request.getfixturevalue(f"{request.param}_run")
