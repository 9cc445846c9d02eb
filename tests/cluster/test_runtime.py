import os
import re
import socket
import stat
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import ray
from ray._private.resource_and_label_spec import ResourceAndLabelSpec
from ray._private.services import determine_plasma_store_config
from ray.exceptions import RayActorError

from cluster import runtime, session
from cluster.presets import smoke
from cluster.runtime import logical_cpus, ray_session
from cluster.session import temporary_folder
from cluster.settings import override
from dreamer4.errors import DataError, RunError

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Where sessions are made, in place of the real one; no address and no token in the environment."""
    monkeypatch.setattr(session, "ROOT", tmp_path)
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def nothing_is_up(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was started"))


def status(url: str, token: str | None = None) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


def test_dashboard_is_on_loopback_and_wants_the_token(ray_up):
    assert ray_up.startswith("http://127.0.0.1:")
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
    jobs = f"{ray_up}/api/jobs/"
    assert [status(jobs), status(jobs, "wrong"), status(jobs, token)] == [401, 403, 200]


def test_token_is_the_owners_alone(ray_up):
    path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(path.read_text()) == 64


def test_session_lives_in_a_short_folder_whatever_tmpdir_is(ray_up):
    folder = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent
    assert folder.parent == Path("/tmp")
    sockets = list(folder.glob("ray/session_*/sockets/*"))
    assert sockets and all(len(str(path)) < 108 for path in sockets)


def test_session_is_as_wide_as_its_widest_stage(ray_up):
    resources = ray.cluster_resources()
    assert resources["CPU"] == logical_cpus(override(smoke(), ["resources.workers=2"]))
    assert resources["object_store_memory"] == pytest.approx(500e6, rel=0.01)


def test_session_inside_of_a_session_uses_it(ray_up):
    with ray_session(smoke()) as url:
        assert url == ""
    assert ray.is_initialized()


@pytest.mark.parametrize(
    ("assignments", "cpus"),
    [
        ([], 3),
        (["resources.workers=7"], 9),
        (["resources.workers=2", "resources.max_workers=4", "resources.shards=2"], 10),
        (["resources.collectors=5"], 5),
        (["evaluation.actors=6", "resources.workers=2"], 6),
    ],
)
def test_widest_stage_counts(assignments, cpus):
    assert logical_cpus(override(smoke(), assignments)) == cpus


def test_port_in_use_is_named_before_anything_starts(root, nothing_is_up):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = override(smoke(), [f"resources.dashboard_port={port}"])
        with pytest.raises(RunError, match=f"port {port} is in use.*resources.dashboard_port"), ray_session(config):
            pass
    assert list(root.iterdir()) == []


def test_cluster_that_does_not_answer_is_named(root, nothing_is_up, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RunError, match=f"can't reach the Ray cluster at '{address}'"), ray_session(smoke()):
        pass


def test_gpus_that_are_not_there_are_counted():
    config = override(smoke(), ["resources.trainer_gpus=1", "resources.worker_gpus=0.5", "resources.workers=2"])
    with pytest.raises(RunError, match="asks for 2 GPUs and this machine has 1"):
        runtime._check_gpus(config, 1)
    runtime._check_gpus(config, 2)


BUSY = "if this machine was busy, give the same command again"


def failed_start(monkeypatch, root, init, *settings):
    """What is said where `ray.init` is as given."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(RunError) as caught, ray_session(override(smoke(), settings)):
        pass
    assert list(root.iterdir()) == []
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ
    return str(caught.value)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (Exception("node timed out during startup.\nmany details"), f"node timed out during startup: {BUSY}"),
        (TimeoutError("no object store socket"), f"no object store socket: {BUSY}"),
        (RuntimeError("Failed to start GCS\nDeadline Exceeded"), f"Failed to start GCS: {BUSY}"),
        (ValueError("no such option\nmany details"), "no such option"),
    ],
)
def test_failed_start_is_one_sentence_and_leaves_nothing(root, monkeypatch, error, sentence):
    def init(**options):
        assert options["address"] == "local" and options["_temp_dir"].startswith(str(root))
        raise error

    assert failed_start(monkeypatch, root, init) == f"can't start Ray: {sentence}"


@pytest.mark.parametrize(
    ("size", "advice"),
    [
        (10**9, r"lower resources.object_store_mb \(1000000000\), this machine has \d+ MB of memory free"),
        (10, r"the minimum allowed is \d+ bytes: raise resources.object_store_mb \(10\)"),
    ],
)
def test_object_store_that_does_not_fit_is_told_by_its_setting(root, monkeypatch, size, advice):
    """In the words of the Ray that is installed, which looks at the sizes before it starts a node."""

    def init(object_store_memory, **options):
        ResourceAndLabelSpec(object_store_memory=object_store_memory).resolve(is_head=True)
        determine_plasma_store_config(object_store_memory, str(root))

    said = failed_start(monkeypatch, root, init, f"resources.object_store_mb={size}")
    assert re.fullmatch(f"can't start Ray: .*{advice}", said) and "ray.init" not in said


def test_tokens_of_a_process_are_equal(root):
    """Ray reads the token once per process, so a second session has to accept the first one's."""
    tokens = []
    for name in ("a", "b"):
        (root / name).mkdir()
        with runtime._token(root / name):
            tokens.append(Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text())
    assert tokens[0] == tokens[1]
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_token_of_the_user_is_left_alone(root, monkeypatch, name):
    monkeypatch.setenv(name, "mine")
    with runtime._token(root):
        assert os.environ[name] == "mine"
        assert not (root / "token").exists()
    assert os.environ[name] == "mine"


@pytest.mark.parametrize("error", [DataError("bad file"), KeyboardInterrupt(), None])
def test_folder_goes_with_its_session(root, error):
    try:
        with temporary_folder() as folder:
            (folder / "log").touch()
            if error is not None:
                raise error
    except (DataError, KeyboardInterrupt):
        pass
    assert list(root.iterdir()) == []


def test_logs_stay_when_an_actor_died_until_the_next_start(root, capsys):
    with pytest.raises(RunError), temporary_folder() as folder:
        raise RunError("actor 'x' died") from RayActorError()
    assert folder.exists()
    assert f"Ray's logs are in {folder}" in capsys.readouterr().err
    with temporary_folder():
        assert not folder.exists()


def test_folders_of_others_and_of_living_sessions_stay(root):
    (root / "dreamer4-something").mkdir()
    with temporary_folder() as first, temporary_folder() as second:
        assert first.exists() and second.exists() and first != second
    assert [path.name for path in root.iterdir()] == ["dreamer4-something"]
