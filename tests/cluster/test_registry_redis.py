import signal
import socketserver
import threading
import traceback

import pytest
from redis_server import RedisServer
from writers import eventually

from cluster.registry import redis as registry_redis
from cluster.registry.registry import list_runs, open_registry
from dreamer4.errors import LeaseLostError, RunError

HOUR = 3600.0


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A Redis of the test's own, which it may kill; what it is told survives that."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", appendonly=True)
    monkeypatch.setenv("DREAMER4_REGISTRY", server.url)
    yield server
    server.kill()


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def text(error):
    """All that anybody could print of an error, the errors it came from included."""
    return "".join(traceback.format_exception(error, chain=True)) + repr(error.__context__) + repr(error.__cause__)


def test_lease_facts_and_fence_survive_the_kill_of_redis(server, run):
    registry = open_registry(run)
    old = registry.acquire("first", HOUR)
    lease = registry.acquire("first", HOUR)
    registry.publish(lease, stage="policy", step=3, weights_version=3)
    server.kill()
    with pytest.raises(RunError, match=rf"redis at {server.address} doesn't serve as the registry .*: start it"):
        registry.check(lease)
    assert server.start()
    registry.check(lease)
    with pytest.raises(LeaseLostError):
        registry.check(old)
    with pytest.raises(RunError, match="written by 'first'"):
        open_registry(run).acquire("second", HOUR)
    registry.publish(lease, weights_version=2)
    assert (registry.read()["step"], registry.read()["weights_version"]) == (3, 3)
    assert registry.acquire("first", HOUR).token > lease.token


def test_token_grows_even_if_redis_has_lost_its_memory(server, run):
    """The fence stands in the run directory as well."""
    registry = open_registry(run)
    for _ in range(3):
        lease = registry.acquire("first", HOUR)
    server.client().flushall()
    for act in (lambda: registry.check(lease), lambda: registry.renew(lease, HOUR), lambda: registry.publish(lease)):
        with pytest.raises(LeaseLostError, match="token is 3, the newest is 0, nobody"):
            act()
    assert registry.acquire("second", HOUR).token == 4
    registry.files.fence_path.unlink()  # negative control: it is those files that remember
    registry.files.lease_path.unlink()
    server.client().flushall()
    assert registry.acquire("second", HOUR).token == 1


def test_redis_that_hangs_is_an_error_not_a_hang(server, run, monkeypatch):
    monkeypatch.setattr(registry_redis, "TIMEOUT", 0.2)
    registry = open_registry(run)
    settings = registry.service.client.connection_pool.connection_kwargs
    assert (settings["socket_timeout"], settings["socket_connect_timeout"]) == (0.2, 0.2)  # its own are longer
    lease = registry.acquire("first", HOUR)
    server.signal(signal.SIGSTOP)
    for act in (lambda: registry.check(lease), lambda: open_registry(run).acquire("first", HOUR)):
        with pytest.raises(RunError, match=rf"redis at {server.address} doesn't serve .*[Tt]ime"):
            act()
    server.signal(signal.SIGCONT)
    eventually(lambda: registry.check(lease) or True)


def test_process_without_the_address_does_not_take_the_run_for_free(redis_run, monkeypatch):
    """An actor that was started without DREAMER4_REGISTRY would otherwise write beside the learner."""
    with_redis = open_registry(redis_run)
    lease = with_redis.acquire("first", HOUR)
    monkeypatch.delenv("DREAMER4_REGISTRY")
    without = open_registry(redis_run)
    wrong = rf"kept by {with_redis.read()['registry']}: set DREAMER4_REGISTRY to it"
    for act in (
        lambda: without.acquire("first", HOUR),
        lambda: without.check(lease),
        lambda: without.publish(lease, step=1),
        without.read,
    ):
        with pytest.raises(RunError, match=wrong):
            act()
    with_redis.release(lease)
    assert without.acquire("second", HOUR).token > lease.token


def test_run_that_is_written_without_redis_is_not_free_in_redis(redis_run, monkeypatch, redis_server):
    monkeypatch.delenv("DREAMER4_REGISTRY")
    without = open_registry(redis_run)
    lease = without.acquire("first", HOUR)
    monkeypatch.setenv("DREAMER4_REGISTRY", redis_server.url)
    with pytest.raises(RunError, match="written by 'first', which was started without DREAMER4_REGISTRY"):
        open_registry(redis_run).acquire("second", HOUR)
    successor = open_registry(redis_run).acquire("first", HOUR)  # the same one, started again
    assert successor.token > lease.token
    with pytest.raises(LeaseLostError):
        without.check(lease)


def test_all_runs_of_redis_are_listed_without_a_root(redis_run):
    lease = open_registry(redis_run).acquire("first", HOUR)
    assert [row["holder"] for row in list_runs() if row["run"] == str(redis_run)] == ["first"]
    assert [row["token"] for row in list_runs(redis_run.parent)] == [lease.token]
    assert list_runs(redis_run / "nowhere") == []


def test_wrong_password_is_refused_and_not_told(redis_run, redis_server, monkeypatch):
    monkeypatch.setenv("DREAMER4_REGISTRY", redis_server.url.replace(redis_server.password, "hunter2"))
    registry = open_registry(redis_run)
    with pytest.raises(RunError, match=rf"redis at {redis_server.address} doesn't serve .*password") as caught:
        registry.acquire("first", HOUR)
    assert "hunter2" not in text(caught.value) + repr(registry.service)


def test_server_that_repeats_the_password_does_not_make_us_repeat_it(run, monkeypatch):
    """A Redis without AUTH does so: it doesn't know the command, it says, and how that command went on."""

    class Repeats(socketserver.StreamRequestHandler):
        def handle(self):
            for line in self.rfile:
                if b"hunter/2" in line:
                    self.wfile.write(b"-ERR unknown command 'AUTH', with args beginning with: " + line)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Repeats) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        port = server.server_address[1]
        monkeypatch.setenv("DREAMER4_REGISTRY", f"redis://:hunter%2F2@127.0.0.1:{port}/0")
        with pytest.raises(RunError, match=rf"redis at 127\.0\.0\.1:{port} .*unknown command .*: \*\*\*") as caught:
            open_registry(run).read()
        assert "hunter" not in text(caught.value)
        server.shutdown()


def test_unreachable_redis_is_named_without_its_password(run, monkeypatch):
    monkeypatch.setenv("DREAMER4_REGISTRY", "redis://me:hunter2@127.0.0.1:1/3")
    registry = open_registry(run)  # isn't contacted yet
    for act in (lambda: registry.acquire("first", HOUR), registry.read, list_runs):
        with pytest.raises(RunError, match=r"redis at 127\.0\.0\.1:1/3 doesn't serve .*: start it") as caught:
            act()
        assert "hunter2" not in text(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "hunter2",
        "http://:hunter2@host:1",
        "redis://:hunter2@host:port/0",
        "redis://:hunter2@host:99999/0",
        "redis://:hunter2@host:1/zero",
        "redis://:hunter2@",
        "redis://:x/hunter2@host:1/0",
        "redis://:x@hunter2/y@host:1/0",
        "redis://:x@hunter2#y@host:1/0",
        "redis://:x@hunter2?y@host:1/0",
        "redis://:123#hunter2@host:1/0",
        "redis://:[hunter2@host:1/0",
    ],
)
def test_address_that_can_be_misread_is_refused_and_not_told(run, monkeypatch, url):
    monkeypatch.setenv("DREAMER4_REGISTRY", url)
    with pytest.raises(RunError, match="DREAMER4_REGISTRY must be redis://:PASSWORD@HOST:PORT/DB") as caught:
        open_registry(run)
    assert "hunter2" not in text(caught.value)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://:a@b@host:1/0", "redis at host:1"),
        ("redis://host", "redis at host:6379"),
        ("rediss://user:x@host:7/2", "redis at host:7/2"),
        ("redis://[::1]:7", "redis at ::1:7"),
    ],
)
def test_address_names_host_port_and_database(run, monkeypatch, url, name):
    monkeypatch.setenv("DREAMER4_REGISTRY", url)
    assert open_registry(run).service.name == name
