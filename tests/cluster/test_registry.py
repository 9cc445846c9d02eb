import multiprocessing
import pickle
import signal
import time

import pytest
from writers import Writer, contend, eventually

from cluster.registry.registry import Lease, list_runs, open_registry
from dreamer4.errors import LeaseLostError, RunError

HOUR = 3600.0
SOON = 0.05  # seconds: over before the test goes on


def facts(registry):
    """What a registry tells, without what time alone changes."""
    return {name: value for name, value in registry.read().items() if name not in ("held_s", "age_s")}


def race(run, rounds, careless=False):
    """Tokens of the winners of every round in which two processes acquire at the same moment."""
    context = multiprocessing.get_context("spawn")
    gate, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=contend, args=(str(run), name, rounds, gate, results, careless), daemon=True)
        for name in ("first", "second")
    ]
    for process in processes:
        process.start()
    won = [[] for _ in range(rounds)]
    for _ in range(2 * rounds):
        number, _, token = results.get(timeout=120)
        won[number] += [token] if token else []
    for process in processes:
        process.join()
    return won


class TestContract:
    """What every registry promises. Runs with files and with a real Redis."""

    def test_holder_is_alone_until_he_releases(self, any_run):
        registry = open_registry(any_run)
        lease = registry.acquire("first", HOUR)
        registry.check(lease)
        with pytest.raises(RunError, match=r"run '.*/run' is written by 'first' for \d+ s already: wait"):
            open_registry(any_run).acquire("second", HOUR)
        assert (registry.read()["holder"], registry.read()["token"]) == ("first", lease.token)
        registry.release(lease)
        assert registry.read()["holder"] is None
        assert open_registry(any_run).acquire("second", HOUR).token > lease.token

    def test_same_holder_takes_over_at_once_and_his_former_self_is_fenced(self, any_run):
        """A restarted actor has the name of the one before, which may still live as a zombie."""
        zombie, restarted = open_registry(any_run), open_registry(any_run)
        old = zombie.acquire("coordinator", HOUR)
        new = restarted.acquire("coordinator", HOUR)
        assert new.token > old.token
        restarted.publish(new, step=7)
        before = facts(restarted)
        for act in (lambda: zombie.check(old), lambda: zombie.renew(old, HOUR), lambda: zombie.publish(old, step=8)):
            with pytest.raises(
                LeaseLostError, match=rf"token is {old.token}, the newest is {new.token}, 'coordinator'"
            ):
                act()
        zombie.release(old)
        assert facts(restarted) == before and before["step"] == 7
        restarted.check(new)

    def test_lease_that_is_not_renewed_is_free_after_its_time(self, any_run):
        first = open_registry(any_run)
        lease = first.acquire("first", SOON)
        successor = eventually(lambda: open_registry(any_run).acquire("second", HOUR))
        assert successor.token > lease.token
        with pytest.raises(LeaseLostError, match="'second' writes it"):
            first.renew(lease, HOUR)

    def test_renewed_lease_outlives_its_first_time(self, any_run):
        registry = open_registry(any_run)
        lease = registry.acquire("first", SOON)
        registry.renew(lease, HOUR)
        time.sleep(2 * SOON)
        with pytest.raises(RunError, match="written by 'first'"):
            registry.acquire("second", HOUR)

    def test_holder_may_renew_after_the_end_if_nobody_came(self, any_run):
        """As after the sleep of a laptop: that nobody came is certain, because the fence has not moved."""
        registry = open_registry(any_run)
        lease = registry.acquire("first", SOON)
        time.sleep(2 * SOON)
        assert registry.read()["holder"] is None
        registry.renew(lease, HOUR)
        assert registry.read()["holder"] == "first"
        with pytest.raises(RunError, match="written by 'first'"):
            registry.acquire("second", HOUR)

    def test_released_lease_is_worth_nothing(self, any_run):
        registry = open_registry(any_run)
        lease = registry.acquire("first", HOUR)
        registry.release(lease)
        registry.release(lease)
        for act in (registry.check, registry.publish, lambda lease: registry.renew(lease, HOUR)):
            with pytest.raises(LeaseLostError, match="nobody writes it"):
                act(lease)

    def test_facts_are_added_and_replaced(self, any_run):
        registry = open_registry(any_run)
        assert registry.read() == {
            "run": str(any_run),
            "registry": registry.read()["registry"],
            "holder": None,
            "token": 0,
            "held_s": None,
            "updated": None,
            "age_s": None,
        }
        lease = registry.acquire("first", HOUR)
        told = {"stage": "agent", "step": 3, "note": "Grüße\n'\"}{", "list": [1, {"x": None}], "yes": True, "no": None}
        registry.publish(lease, **told, frames_per_s=float("nan"))
        registry.publish(lease, step=4, frames_per_s=0.1)
        read = open_registry(any_run).read()
        assert {name: read[name] for name in told} == {**told, "step": 4}
        assert read["frames_per_s"] == 0.1
        assert read["age_s"] >= 0 and read["held_s"] >= 0 and abs(read["updated"] - time.time()) < HOUR
        registry.release(lease)
        assert open_registry(any_run).read()["step"] == 4

    def test_infinite_number_becomes_null(self, any_run):
        registry = open_registry(any_run)
        registry.publish(registry.acquire("first", HOUR), frames_per_s=float("inf"))
        assert registry.read()["frames_per_s"] is None

    def test_weights_version_never_goes_back_within_a_stage(self, any_run):
        registry = open_registry(any_run)
        lease = registry.acquire("first", HOUR)
        registry.publish(lease, stage="policy", step=28, weights_version=28)
        lease = registry.acquire("first", HOUR)  # restarted from the checkpoint of step 25
        registry.publish(lease, step=9, weights_version=9)  # as text, 9 is larger than 28
        assert (registry.read()["step"], registry.read()["weights_version"]) == (9, 28)
        registry.publish(lease, stage="shuffled")
        assert "weights_version" not in registry.read()
        registry.publish(lease, weights_version=1)
        assert registry.read()["weights_version"] == 1
        registry.publish(lease, stage="policy", weights_version=27)
        assert registry.read()["weights_version"] == 28
        registry.publish(lease, weights_version=100)
        assert registry.read()["weights_version"] == 100

    @pytest.mark.parametrize(
        ("told", "message"),
        [
            ({"holder": "me"}, "'holder' is said by the registry itself"),
            ({"weights_version": -1}, "whole number from 0 on, got -1"),
            ({"weights_version": True}, "whole number from 0 on, got True"),
            ({"weights_version": 1.5}, "whole number from 0 on, got 1.5"),
            ({"stage": 3}, "stage must be a name, got 3"),
            ({"set": {1}}, "not JSON serializable"),
            ({"deep": [float("nan")]}, "not JSON compliant"),
        ],
    )
    def test_what_is_no_fact_changes_nothing(self, any_run, told, message):
        registry = open_registry(any_run)
        lease = registry.acquire("first", HOUR)
        before = facts(registry)
        with pytest.raises((ValueError, TypeError), match=message):
            registry.publish(lease, step=1, **told)
        assert facts(registry) == before

    @pytest.mark.parametrize(("holder", "ttl"), [("", 1.0), ("first", 0.0), ("first", -1.0), ("first", float("nan"))])
    def test_lease_without_holder_or_time_is_refused(self, any_run, holder, ttl):
        with pytest.raises(ValueError, match=r"a lease has a holder and at least 0\.001 s"):
            open_registry(any_run).acquire(holder, ttl)
        assert open_registry(any_run).read()["token"] == 0

    def test_holder_may_have_any_name(self, any_run):
        registry, name = open_registry(any_run), "Grüße: 'a' \"b\" {c}\n%s"
        lease = registry.acquire(name, HOUR)
        registry.renew(lease, HOUR)
        assert registry.read()["holder"] == name
        assert registry.acquire(name, HOUR).token > lease.token

    def test_pickled_lease_is_checked_in_another_registry(self, any_run):
        lease = open_registry(any_run).acquire("first", HOUR)
        copy = pickle.loads(pickle.dumps(lease))
        assert copy == lease == Lease(str(any_run), "first", lease.token)
        open_registry(copy.run).check(copy)

    def test_token_that_was_never_given_out_is_refused(self, any_run):
        registry = open_registry(any_run)
        lease = registry.acquire("first", HOUR)
        for token in (0, lease.token + 1):
            with pytest.raises(LeaseLostError):
                registry.publish(Lease(lease.run, "first", token), step=1)
        assert "step" not in registry.read()

    def test_link_to_a_run_is_the_same_run(self, any_run):
        link = any_run.parent / "link"
        link.symlink_to(any_run)
        open_registry(any_run).acquire("first", HOUR)
        with pytest.raises(RunError, match="written by 'first'"):
            open_registry(link).acquire("second", HOUR)
        assert open_registry(link).read()["holder"] == "first"

    def test_runs_do_not_know_each_other(self, any_run):
        other = any_run.parent / "other"
        other.mkdir()
        one, two = open_registry(any_run), open_registry(other)
        one.publish(one.acquire("first", HOUR), step=1)
        two.publish(two.acquire("second", HOUR), step=2)
        assert (one.read()["holder"], one.read()["step"]) == ("first", 1)
        assert (two.read()["holder"], two.read()["step"]) == ("second", 2)

    def test_missing_run_directory_is_not_taken_for_a_free_run(self, any_run):
        """As on a node where the shared disk isn't mounted."""
        path = any_run.parent / "unmounted" / "run"
        with pytest.raises(RunError, match=r"can't use '.*/unmounted/run/\.lease': No such file"):
            open_registry(path).acquire("first", HOUR)
        assert not path.parent.exists()

    def test_remote_run_is_refused(self, any_run):
        with pytest.raises(RunError, match="got 's3://bucket/run'"):
            open_registry("s3://bucket/run")

    def test_runs_are_listed(self, any_run):
        names = ("b", "a")
        for name in names:
            path = any_run / "deep" / name
            path.mkdir(parents=True)
            (path / "config.json").write_text("{}")
            registry = open_registry(path)
            registry.publish(registry.acquire(name, HOUR), step=ord(name))
        outside = any_run / "outside"
        outside.mkdir()
        (outside / "config.json").write_text("{}")
        open_registry(outside).acquire("c", HOUR)
        found = list_runs(any_run / "deep")
        assert [(row["run"], row["holder"], row["step"]) for row in found] == [
            (str(any_run / "deep" / "a"), "a", 97),
            (str(any_run / "deep" / "b"), "b", 98),
        ]

    def test_of_two_processes_that_race_exactly_one_wins_every_time(self, any_run):
        won = race(any_run, rounds=40)
        assert [len(tokens) for tokens in won] == [1] * 40
        assert [tokens[0] for tokens in won] == sorted({tokens[0] for tokens in won})

    def test_killed_holder_is_succeeded_with_a_larger_token(self, any_run):
        with Writer(any_run, "first", ttl=1) as writer:
            assert writer.ask("acquire") == "ok"
            assert writer.ask("publish 3") == "ok"
            before = open_registry(any_run).read()
            writer.signal(signal.SIGKILL)
            writer.process.wait()
        registry = open_registry(any_run)
        lease = eventually(lambda: registry.acquire("second", HOUR))
        assert lease.token > before["token"]
        assert (registry.read()["holder"], registry.read()["step"]) == ("second", 3)

    @pytest.mark.parametrize("line", ["publish 4", "renew", "check"])
    def test_writer_that_was_stopped_too_long_is_refused(self, any_run, line):
        with Writer(any_run, "first", ttl=SOON) as writer:
            assert writer.ask("acquire") == "ok"
            writer.signal(signal.SIGSTOP)
            registry = open_registry(any_run)
            lease = eventually(lambda: registry.acquire("second", HOUR))
            registry.publish(lease, step=3)
            before = facts(registry)
            writer.tell(line)
            writer.signal(signal.SIGCONT)
            assert writer.answer().startswith("LeaseLostError 'first' has lost the lease")
            assert facts(registry) == before

    def test_writer_that_was_stopped_goes_on_if_nobody_came(self, any_run):
        """Negative control of the one above: it is the take-over that fences, not the stop."""
        with Writer(any_run, "first", ttl=SOON) as writer:
            assert writer.ask("acquire") == "ok"
            writer.signal(signal.SIGSTOP)
            time.sleep(2 * SOON)
            writer.tell("publish 4")
            writer.signal(signal.SIGCONT)
            assert writer.answer() == "ok"
            assert open_registry(any_run).read()["step"] == 4


def test_race_finds_out_a_registry_that_looks_before_it_takes(tmp_path):
    """Negative control of the race."""
    assert [len(tokens) for tokens in race(tmp_path, rounds=3, careless=True)] == [2, 2, 2]
