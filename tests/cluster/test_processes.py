import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from living import alive, eventually

from cluster.local.guard import offspring
from cluster.local.processes import kill, launch

# One that ignores SIGTERM, and an orphan in a session of its own, as Ray's jobs are.
STUBBORN = 'trap "" TERM; (setsid sleep 1000 &); sleep 1000 & wait'


def started(guard: int, count: int) -> set[int]:
    """The ids of a guard and of all below it, once there are so many of the latter."""
    assert eventually(lambda: len(offspring(guard)) == count)
    return {guard, *offspring(guard)}


def test_kill_ends_orphans_in_other_sessions_too(tmp_path):
    process = launch(["bash", "-c", STUBBORN], dict(os.environ), tmp_path / "log")
    pids = started(process.pid, 3)
    kill([process])
    assert not alive(pids)
    kill([process])  # and may be said twice


def test_end_of_the_command_ends_what_it_left_behind(tmp_path):
    process = launch(["bash", "-c", "(setsid sleep 1000 &); echo done; exit 3"], dict(os.environ), tmp_path / "log")
    assert process.wait(timeout=30) == 3
    assert (tmp_path / "log").read_text() == "done\n"
    assert not offspring(process.pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_survives_the_process_that_launched_it(tmp_path, number):
    script = (
        "import os, sys, time; from pathlib import Path; from cluster.local.processes import launch\n"
        f"print(launch(['bash', '-c', {STUBBORN!r}], dict(os.environ), Path(sys.argv[1])).pid, flush=True)\n"
        "time.sleep(1000)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as harness:
        assert harness.stdout is not None
        pids = started(int(harness.stdout.readline()), 3)
        harness.send_signal(number)
    assert eventually(lambda: not alive(pids))


def test_command_outlives_the_thread_that_launched_it(tmp_path):
    """To the kernel the parent is a thread, so a naive guard would end here."""
    launched = []
    thread = threading.Thread(target=lambda: launched.append(launch(["sleep", "1000"], {}, tmp_path / "log")))
    thread.start()
    thread.join()
    pids = started(launched[0].pid, 1)
    with pytest.raises(subprocess.TimeoutExpired):
        launched[0].wait(timeout=0.5)
    kill(launched)
    assert not alive(pids)


def test_command_that_is_not_there_says_so(tmp_path):
    process = launch(["/nowhere/program"], {}, tmp_path / "log")
    assert process.wait(timeout=30) != 0
    assert "can't run '/nowhere/program'" in (tmp_path / "log").read_text()
