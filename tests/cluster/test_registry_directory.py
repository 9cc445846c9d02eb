import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
from writers import Writer

from cluster.registry import lease_files
from cluster.registry.liveness import Process
from cluster.registry.registry import Lease, list_runs, open_registry
from dreamer4.errors import LeaseLostError, RunError
from dreamer4.files import read_json, write_json

HOUR = 3600.0


@pytest.fixture
def registry(directory_run):
    return open_registry(directory_run)


@pytest.fixture
def files(registry):
    return registry.files


def change(path, **values):
    """Rewrites some keys of a JSON file; those of its `process` too."""
    read = read_json(path)
    process = {name: values.pop(name) for name in list(values) if name in read.get("process", {})}
    write_json(path, {**read, **values, **({"process": {**read["process"], **process}} if process else {})})


def test_dead_holder_is_succeeded_at_once_though_his_parent_has_not_noticed(directory_run, registry):
    with Writer(directory_run, "first", HOUR) as writer:
        assert writer.ask("acquire") == "ok"
        with pytest.raises(RunError, match="written by 'first'"):
            registry.acquire("second", HOUR)
        writer.signal(signal.SIGKILL)
        os.waitid(os.P_PID, writer.process.pid, os.WEXITED | os.WNOWAIT)  # dead, and left a zombie
        assert registry.read()["holder"] is None
        assert registry.acquire("second", HOUR).token == 2


def test_another_process_with_the_same_number_is_not_the_holder(directory_run, registry, files):
    with Writer(directory_run, "first", HOUR) as writer:
        assert writer.ask("acquire") == "ok"
        assert read_json(files.lease_path)["process"]["pid"] == writer.process.pid
        change(files.lease_path, started=read_json(files.lease_path)["process"]["started"] - 1)
        assert registry.acquire("second", HOUR).token == 2


@pytest.mark.parametrize("foreign", [{"boot": "another"}, {"namespace": "pid:[1]"}, {"boot": None}, {"started": None}])
def test_process_of_another_machine_or_container_is_not_taken_for_dead(directory_run, registry, files, foreign):
    """Its number says nothing here: only the end of the lease frees the run."""
    with Writer(directory_run, "first", HOUR) as writer:
        assert writer.ask("acquire") == "ok"
    change(files.lease_path, **foreign)
    with pytest.raises(RunError, match="written by 'first'"):
        registry.acquire("second", HOUR)
    change(files.lease_path, expires=time.time() - 1, expires_uptime=0)
    assert registry.acquire("second", HOUR).token == 2


def test_clock_that_is_set_does_not_end_a_lease(registry, monkeypatch):
    registry.acquire("first", HOUR)
    now = time.time()
    monkeypatch.setattr(lease_files.time, "time", lambda: now + 100 * HOUR)
    with pytest.raises(RunError, match="written by 'first'"):
        registry.acquire("second", HOUR)


def test_lease_belongs_to_the_process_that_renewed_it_last(directory_run, registry):
    """An actor may go on with the lease that its driver acquired."""
    opened = "import sys; from cluster.registry.registry import open_registry"
    script = f"{opened}; open_registry(sys.argv[1]).acquire('first', 3600)"
    subprocess.run([sys.executable, "-c", script, str(directory_run)], check=True)
    assert registry.read()["holder"] is None
    registry.renew(Lease(registry.run, "first", 1), HOUR)
    with pytest.raises(RunError, match="written by 'first'"):
        registry.acquire("second", HOUR)


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"token": "7"}', "{}"])
@pytest.mark.parametrize("name", ["fence.json", "lease.json"])
def test_fence_survives_the_damage_of_either_file(registry, files, name, broken):
    for _ in range(3):
        lease = registry.acquire("first", HOUR)
    (files.folder / name).write_text(broken)
    registry.check(lease)
    registry.renew(lease, HOUR)  # repairs lease.json
    assert registry.acquire("first", HOUR).token == 4
    assert read_json(files.fence_path) == {"token": 4}


def test_fence_survives_the_loss_of_its_file(registry, files):
    registry.acquire("first", HOUR)
    registry.acquire("first", HOUR)
    files.fence_path.unlink()
    assert registry.acquire("first", HOUR).token == 3


def test_damage_of_both_files_is_an_error_that_says_what_to_do(registry, files):
    lease = registry.acquire("first", HOUR)
    files.fence_path.write_text("{")
    files.lease_path.write_text("{")
    for act in (lambda: registry.acquire("second", HOUR), lambda: registry.check(lease), registry.read):
        with pytest.raises(RunError, match=r"lease\.json' is damaged: make sure that nobody writes the run"):
            act()
    files.lease_path.unlink()
    with pytest.raises(RunError, match=r"fence\.json' is (damaged|not JSON)"):
        registry.acquire("second", HOUR)
    files.fence_path.write_text('{"token": 7}')
    assert registry.acquire("second", HOUR).token == 8


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"holder": "first"}', '{"process": {}}'])
def test_damaged_lease_is_never_taken_for_a_free_one(registry, files, broken):
    registry.acquire("first", HOUR)
    files.lease_path.write_text(broken)
    with pytest.raises(RunError, match=r"lease\.json' is damaged: make sure that nobody writes the run"):
        registry.acquire("second", HOUR)


def test_lease_with_a_number_that_is_none_is_damaged(registry, files):
    registry.acquire("first", HOUR)
    for values in ({"token": True}, {"expires": "soon"}, {"pid": None}, {"more": 1}):
        whole = files.lease_path.read_text()
        change(files.lease_path, **values)
        with pytest.raises(RunError, match="is damaged"):
            registry.acquire("second", HOUR)
        files.lease_path.write_text(whole)


def test_acquisition_that_was_killed_half_way_uses_up_its_token(registry, files):
    lease = registry.acquire("first", HOUR)
    files.raise_fence(lease.token + 1)
    with pytest.raises(LeaseLostError):
        registry.check(lease)
    assert registry.acquire("first", HOUR).token == lease.token + 2


@pytest.mark.parametrize("broken", ["{", "[]", '{"facts": 3, "versions": {}}'])
def test_damaged_facts_are_named_and_do_not_stop_the_writer(registry, files, broken):
    lease = registry.acquire("first", HOUR)
    files.facts_path.write_text(broken)
    for act in (registry.read, lambda: registry.publish(lease, step=1)):
        with pytest.raises(RunError, match=r"facts\.json' is damaged: remove it"):
            act()
    registry.check(lease)
    files.facts_path.unlink()
    registry.publish(lease, step=1)
    assert registry.read()["step"] == 1


def test_stopped_process_within_the_lock_is_an_error_not_a_hang(registry, files, monkeypatch):
    lease = registry.acquire("first", HOUR)
    monkeypatch.setattr(lease_files, "PATIENCE", 0.05)
    with open(files.folder / "lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match=r"\.lease/lock' was held for 0\.05 s: continue or end the stopped process"):
            registry.renew(lease, HOUR)
        registry.check(lease)  # reading needs no lock
    registry.renew(lease, HOUR)


def test_reading_leaves_no_trace(directory_run, registry):
    registry.read()
    assert list(directory_run.iterdir()) == []


def test_this_process_is_alive_and_its_like_of_another_start_is_not():
    me = Process.current()
    assert me.here() and not me.certainly_dead()
    assert me.started is not None and replace(me, started=me.started - 1).certainly_dead()
    assert json.loads(json.dumps(asdict(me))) == asdict(me)


def test_runs_are_found_at_any_depth_but_not_within_each_other(directory_run, monkeypatch):
    for name in ("runs/one", "runs/group/two", "runs/one/copy", "runs/.hidden", "runs/empty"):
        (directory_run / name).mkdir(parents=True)
        if name != "runs/empty":
            (directory_run / name / "config.json").write_text("{}")
    monkeypatch.chdir(directory_run)
    found = [row["run"].removeprefix(f"{directory_run}/runs/") for row in list_runs()]
    assert found == ["group/two", "one"]
    assert [row["run"] for row in list_runs(directory_run / "runs" / "one")] == [str(directory_run / "runs" / "one")]


def test_damaged_run_does_not_hide_the_others(directory_run):
    for name in ("bad", "good"):
        (directory_run / name).mkdir()
        (directory_run / name / "config.json").write_text("{}")
        open_registry(directory_run / name).acquire(name, HOUR)
    (directory_run / "bad" / ".lease" / "lease.json").write_text("{")
    bad, good = list_runs(directory_run)
    assert bad.keys() == {"run", "error"} and "is damaged" in bad["error"]
    assert good["holder"] == "good"


def test_missing_root_is_named(directory_run):
    with pytest.raises(RunError, match=r"there is no folder '.*/nowhere': name the one that holds the runs by --root"):
        list_runs(directory_run / "nowhere")
