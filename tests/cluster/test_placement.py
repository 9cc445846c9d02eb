import time

import pytest
import ray
from faulty import Adder, Crashes, Refuses
from ray.exceptions import RayError

from cluster.placement import result, worker
from dreamer4.errors import CheckpointError, DataError, RunError

pytestmark = [pytest.mark.usefixtures("ray_up"), pytest.mark.xdist_group("ray")]


def test_actor_answers_with_values_and_lists_of_them():
    adder = worker(Adder, name="adder").remote(5)
    assert result(adder.add.remote(2)) == 7
    assert result([adder.add.remote(1), adder.add.remote(1)]) == [8, 9]


def test_class_stays_a_plain_class():
    worker(Adder)
    assert Adder(1).add(1) == 2


def test_several_actors_share_a_name():
    make = worker(Adder, name="twin", cpus=0.5)
    first, second = make.remote(1), make.remote(2)
    assert result([first.add.remote(0), second.add.remote(0)]) == [1, 2]


def test_threads_of_an_actor_are_set_before_torch_is_there():
    assert result(worker(Adder, threads=1).remote(0).threads.remote()) == ("1", 1)


def test_mistake_in_an_actor_arrives_as_itself():
    adder = worker(Adder).remote(0)
    with pytest.raises(DataError) as caught:
        result(adder.mistake.remote())
    assert type(caught.value) is DataError
    assert str(caught.value) == "shard 3 is cut short: copy it again"
    assert caught.value.__suppress_context__  # no traceback of Ray's for the user
    assert result(adder.add.remote(1)) == 1


def test_mistake_in_a_constructor_arrives_as_itself():
    with pytest.raises(CheckpointError) as caught:
        result(worker(Refuses).remote().work.remote())
    assert str(caught.value) == "checkpoint 7 belongs to another config:\nseed is 0 there and 1 here"


def test_bug_in_an_actor_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError, match=r"faulty\.py") as caught:
        result(worker(Adder).remote(0).bug.remote())
    assert isinstance(caught.value, RayError)


def test_bug_in_a_constructor_keeps_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)faulty\.py.*a bug in a constructor"):
        result(worker(Crashes).remote().work.remote())


def test_dead_actor_is_named():
    adder = worker(Adder, name="imagination").remote(0)
    for _ in range(2):  # while it dies, and afterwards
        with pytest.raises(
            RunError, match=r"^actor 'imagination \d+' died, .*: start the same command again"
        ) as caught:
            result(adder.die.remote())
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value.__cause__, RayError)


def test_stateless_actor_is_started_and_asked_again(tmp_path):
    adder = worker(Adder, restarts=1).remote(0)
    assert result(adder.die_once.remote(tmp_path / "flag")) == "alive"


def test_without_restarts_the_call_is_lost(tmp_path):
    """Negative control of the restarts."""
    with pytest.raises(RunError, match=r"'Adder \d+' died"):
        result(worker(Adder).remote(0).die_once.remote(tmp_path / "flag"))
    assert (tmp_path / "flag").exists()


def test_forgotten_actor_frees_its_place():
    """Stages follow each other on as many CPUs as the widest one needs."""
    everything = ray.cluster_resources()["CPU"]
    wide = worker(Adder, name="wide", cpus=everything)
    for start in range(2):
        adder = wide.remote(start)
        assert result(adder.add.remote(1)) == start + 1
        del adder
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < everything and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ray.available_resources()["CPU"] == everything
