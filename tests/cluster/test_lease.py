import signal
import threading
import time

import pytest
from redis_server import RedisServer
from writers import PATIENCE, Writer, eventually

from cluster.registry import lease as lease_module
from cluster.registry.lease import LeaseKeeper
from cluster.registry.registry import open_registry
from dreamer4.errors import LeaseLostError, RunError

HOUR = 3600.0
SHORT = 0.6  # seconds; nothing goes wrong if the machine is so slow that the lease runs out
LONG = 2.0  # seconds, for where it may not run out


class Flaky:
    """A registry that can be out of reach, and that notes what it was asked."""

    def __init__(self, registry):
        self.registry, self.run, self.asked = registry, registry.run, []
        self.down = self.error = None

    def __getattr__(self, name):
        def ask(*arguments, **fields):
            self.asked.append(name)
            if self.error is not None:
                raise self.error
            if self.down:
                raise RunError("redis at nowhere:1 doesn't serve")
            return getattr(self.registry, name)(*arguments, **fields)

        return ask

    def wait_for(self, name, more):
        """Until it was asked `more` times again."""
        wanted = self.asked.count(name) + more
        eventually(lambda: self.asked.count(name) >= wanted)


@pytest.fixture
def flaky(any_run):
    return Flaky(open_registry(any_run))


def keeper_threads():
    return [thread for thread in threading.enumerate() if thread.name == "lease keeper"]


def test_keeper_renews_until_it_releases(any_run, flaky):
    with LeaseKeeper(any_run, "first", LONG, flaky) as keeper:
        flaky.wait_for("renew", 4)  # longer than the ttl
        assert not keeper.lost.is_set()
        keeper.check()
        with pytest.raises(RunError, match="written by 'first'"):
            open_registry(any_run).acquire("second", HOUR)
    assert open_registry(any_run).acquire("second", HOUR).token > keeper.lease.token
    assert not keeper_threads()
    with pytest.raises(LeaseLostError):
        keeper.check()


def test_without_renewals_the_lease_would_have_ended(any_run):
    """Negative control of the one above."""
    open_registry(any_run).acquire("first", SHORT)
    assert eventually(lambda: open_registry(any_run).acquire("second", HOUR))


def test_keeper_releases_after_an_error_too(any_run):
    with pytest.raises(ZeroDivisionError), LeaseKeeper(any_run, "first", HOUR):
        raise ZeroDivisionError
    assert open_registry(any_run).read()["holder"] is None and not keeper_threads()


def test_long_pauses_between_renewals_do_not_delay_the_end(any_run):
    with LeaseKeeper(any_run, "first", 10 * HOUR):
        pass
    assert not keeper_threads()


def test_second_keeper_is_refused_and_leaves_no_thread(any_run):
    with LeaseKeeper(any_run, "first", HOUR) as keeper:
        with pytest.raises(RunError, match="written by 'first'"), LeaseKeeper(any_run, "second", HOUR):
            pytest.fail("two writers")
        assert len(keeper_threads()) == 1
        keeper.check()


def test_keeper_that_was_superseded_says_so_everywhere(any_run):
    with LeaseKeeper(any_run, "first", SHORT) as keeper:
        successor = open_registry(any_run)
        lease = successor.acquire("first", HOUR)  # its next incarnation
        successor.publish(lease, step=7)
        with pytest.raises(LeaseLostError, match="has lost the lease"):
            keeper.check()
        with pytest.raises(LeaseLostError, match="has lost the lease"):
            keeper.publish(step=8)
    successor.check(lease)  # which the keeper has not released
    assert successor.read()["step"] == 7


def test_waiting_for_the_loss_needs_no_check(any_run):
    with LeaseKeeper(any_run, "first", SHORT) as keeper:
        open_registry(any_run).acquire("first", HOUR)
        assert keeper.lost.wait(PATIENCE)


def test_first_publish_after_the_loss_is_refused(any_run):
    """Before the thread has noticed."""
    with LeaseKeeper(any_run, "first", HOUR) as keeper:
        registry = open_registry(any_run)
        registry.acquire("first", HOUR)
        with pytest.raises(LeaseLostError):
            keeper.publish(step=8)
        assert keeper.lost.is_set() and "step" not in registry.read()


def test_short_outage_is_survived_and_what_was_published_arrives(any_run, flaky):
    with LeaseKeeper(any_run, "first", HOUR, flaky) as keeper:
        keeper.ttl = SHORT  # the thread still has an hour: nothing is lost however slow this machine is
        keeper.publish(step=1, frames_per_s=10)
        flaky.down = True
        keeper.publish(step=2)
        keeper.publish(step=3, workers=4)
        flaky.down = False
        assert flaky.registry.read()["step"] == 1
        keeper.publish(state="running")
        told = flaky.registry.read()
        assert [told[name] for name in ("step", "workers", "frames_per_s", "state")] == [3, 4, 10, "running"]
        keeper.check()


def test_thread_delivers_what_an_outage_held_back(any_run, flaky):
    with LeaseKeeper(any_run, "first", SHORT, flaky) as keeper:
        keeper._until += HOUR  # the outage can't be too long
        flaky.down = True
        keeper.publish(step=2)
        flaky.wait_for("renew", 2)
        assert "step" not in flaky.registry.read() and not keeper.lost.is_set()
        flaky.down = False
        eventually(lambda: flaky.registry.read().get("step") == 2)
        keeper.check()


def test_last_words_are_delivered_at_the_end(any_run, flaky):
    with LeaseKeeper(any_run, "first", HOUR, flaky) as keeper:
        flaky.down = True
        keeper.publish(state="complete")
        flaky.down = False
    assert flaky.registry.read()["state"] == "complete"


def test_outage_longer_than_the_lease_loses_it(any_run, flaky):
    """Another one may have it by then, however well the registry works afterwards."""
    with LeaseKeeper(any_run, "first", SHORT, flaky) as keeper:
        flaky.down = True
        assert keeper.lost.wait(PATIENCE)
        flaky.down = False
        with pytest.raises(LeaseLostError, match=r"'first' could not renew the lease .* for 0\.6 s, .*nowhere:1"):
            keeper.check()
        with pytest.raises(LeaseLostError):
            keeper.publish(step=1)


def test_check_never_passes_during_an_outage(any_run, flaky):
    """A cut-off writer can't know whether its next incarnation writes already: it waits, until its time is over."""
    with LeaseKeeper(any_run, "first", SHORT, flaky) as keeper:
        flaky.down = True
        with pytest.raises(LeaseLostError, match="could not renew"):
            keeper.check()
        assert keeper.lost.is_set()


def test_check_waits_for_the_end_of_an_outage(any_run, flaky):
    with LeaseKeeper(any_run, "first", HOUR, flaky) as keeper:
        keeper.ttl = SHORT  # how often it asks
        flaky.down = True
        checking = threading.Thread(target=keeper.check)
        checking.start()
        flaky.wait_for("check", 3)
        assert checking.is_alive()
        flaky.down = False
        checking.join(PATIENCE)
        assert not checking.is_alive() and not keeper.lost.is_set()


def test_check_leaves_half_of_the_time_to_write(any_run, flaky, monkeypatch):
    with LeaseKeeper(any_run, "first", HOUR, flaky) as keeper:
        keeper.check()
        assert "renew" not in flaky.asked
        now = lease_module.uptime()
        monkeypatch.setattr(lease_module, "uptime", lambda: now + 0.6 * HOUR)
        keeper.check()
        assert flaky.asked.count("renew") == 1
        assert keeper._until - lease_module.uptime() > HOUR / 2


def test_renewals_that_overtake_each_other_leave_the_later_end(any_run):
    """Both the thread and `check` renew; the answer to the earlier one may come last."""
    with LeaseKeeper(any_run, "first", HOUR) as keeper:
        until = keeper._until
        keeper._extend(lease_module.uptime() - HOUR)
        assert keeper._until == until


def test_time_is_counted_from_before_the_request(any_run, flaky, monkeypatch):
    """However long the answer took: the registry began to count before it came."""
    clock = [1000.0]
    monkeypatch.setattr(lease_module, "uptime", lambda: clock[0])
    acquire = flaky.registry.acquire

    def slow(holder, ttl):
        lease = acquire(holder, ttl)
        clock[0] += 100
        return lease

    flaky.registry.acquire = slow
    with LeaseKeeper(any_run, "first", HOUR, flaky) as keeper:
        assert keeper._until <= 1000 + HOUR


def test_bug_in_the_thread_loses_the_lease(any_run, flaky, monkeypatch):
    """Rather than that nobody renews it any more."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with LeaseKeeper(any_run, "first", SHORT, flaky) as keeper:
        flaky.error = ZeroDivisionError("a bug")
        assert keeper.lost.wait(PATIENCE)
        flaky.error = None
        with pytest.raises(LeaseLostError, match="can't be renewed any more: ZeroDivisionError"):
            keeper.check()


def test_what_is_no_fact_is_told_to_the_caller_and_forgotten(any_run):
    with LeaseKeeper(any_run, "first", HOUR) as keeper:
        with pytest.raises(ValueError, match="'holder' is said by the registry itself"):
            keeper.publish(step=1, holder="me")
        keeper.publish(workers=2)
        told = open_registry(any_run).read()
        assert told["workers"] == 2 and "step" not in told


def test_stopped_keeper_is_fenced_when_somebody_took_over(any_run):
    with Writer(any_run, "first", SHORT) as writer:
        assert writer.ask("keep") == "ok"
        registry = open_registry(any_run)
        writer.stop(any_run)
        lease = eventually(lambda: registry.acquire("second", HOUR))
        registry.publish(lease, step=3)
        writer.tell("publish 4")
        writer.tell("check")
        writer.signal(signal.SIGCONT)
        assert writer.answer().startswith("LeaseLostError")
        assert writer.answer().startswith("LeaseLostError")
        assert (registry.read()["step"], registry.read()["holder"]) == (3, "second")


def test_stopped_keeper_goes_on_if_nobody_came(any_run):
    with Writer(any_run, "first", SHORT) as writer:
        assert writer.ask("keep") == "ok"
        writer.signal(signal.SIGSTOP)
        time.sleep(2 * SHORT)
        writer.tell("check")
        writer.tell("publish 4")
        writer.signal(signal.SIGCONT)
        assert (writer.answer(), writer.answer()) == ("ok", "ok")
        assert open_registry(any_run).read()["step"] == 4


def test_keeper_survives_a_restart_of_redis(monkeypatch, tmp_path):
    for name in ("redis", "run"):
        (tmp_path / name).mkdir()
    server = RedisServer(tmp_path / "redis", appendonly=True)
    try:
        monkeypatch.setenv("DREAMER4_REGISTRY", server.url)
        with LeaseKeeper(tmp_path / "run", "first", HOUR) as keeper:
            server.kill()
            keeper.publish(step=5)
            assert server.start()
            keeper.check()
            keeper.publish(state="running")
            told = open_registry(tmp_path / "run").read()
            assert (told["step"], told["state"], told["holder"]) == (5, "running", "first")
    finally:
        server.kill()
