"""`deploy/local-cluster.sh`: from an empty directory to a stage 4 that runs as a job, and back to nothing."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.request import urlopen

import pytest
from living import alive, eventually

from benchmarks.drill import prepare
from cluster.local.guard import offspring
from cluster.policy.telemetry import read_telemetry
from cluster.submit import ADDRESSES

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "local-cluster.sh"


def call(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHON": sys.executable, **variables}
    return subprocess.run([str(SCRIPT), *words], cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["stop"], "no cluster of this directory is running"),
        (["begin"], "unknown command 'begin'"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, words, sentence):
    done = call(tmp_path, *words)
    assert done.returncode == 2 and sentence in done.stderr and len(done.stderr.splitlines()) == 1


def test_python_without_ray_is_named(tmp_path):
    done = call(tmp_path, PYTHON="false")
    assert done.returncode == 2 and "has no Ray: say `make install`" in done.stderr


def test_process_that_only_has_the_number_of_a_former_cluster_is_left_alone(tmp_path):
    (tmp_path / ".dreamer4-cluster").mkdir()
    (tmp_path / ".dreamer4-cluster" / "pid").write_text(str(os.getpid()))
    done = call(tmp_path, "stop")
    assert done.returncode == 2 and "no cluster of this directory is running" in done.stderr


def exported(file: Path) -> dict[str, str]:
    """What sourcing a file sets."""
    command = ["bash", "-c", 'source "$0" && env -0', str(file)]
    text = subprocess.run(command, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True).stdout
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def submit(env: Mapping[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    job = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", ".", "--", *command]
    return subprocess.run(job, env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True, timeout=500)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_stage_four_runs_as_a_job_is_seen_on_the_page_and_nothing_is_left(tmp_path):
    run = tmp_path / "run"
    prepare(run, ["policy.steps=40"])
    folder = tmp_path / "empty"
    folder.mkdir()
    state, log = folder / ".dreamer4-cluster", tmp_path / "log"
    with open(log, "w") as output:
        env = {**os.environ, "PYTHON": sys.executable}
        options = ["--idle-seconds", "5", "--max-nodes", "3"]
        script = subprocess.Popen([str(SCRIPT), *options], cwd=folder, env=env, stdout=output, stderr=output)
    try:
        assert eventually(lambda: (state / "env").exists() or script.poll() is not None, 200)
        variables = exported(state / "env")
        assert variables[ADDRESSES[1]].startswith("http://127.0.0.1:") and variables["RAY_AUTH_MODE"] == "token"
        assert "a cluster of this directory is running" in call(folder).stderr
        done = submit(variables, "dreamer4", "train", "policy", "--run", str(run), "resources.node_price=1")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr
        assert (run / "finished" / "policy.json").exists()
        rows = read_telemetry(run, "policy")
        assert max(row["nodes"] for row in rows) > 1, "nodes came by themselves"
        page = re.search(r"^page +(\S+)$", log.read_text(), re.M)
        assert page is not None
        with urlopen(f"{page[1]}/data?seconds=0") as answer:
            told = json.load(answer)
        assert told["run"] == run.name and told["source"].startswith("Prometheus")
        assert told["latest"]["step"] > 0 and told["latest"]["frames_per_s"] is not None

        family = {script.pid, *offspring(script.pid)}
        assert len(family) > 10
        folder_of_ray = Path(variables["RAY_AUTH_TOKEN_PATH"]).parent
        done = call(folder, "stop")
        assert done.returncode == 0 and done.stdout == "stopped\n", done.stderr
        assert script.wait(30) == 0
        assert eventually(lambda: not alive(family))
        assert not state.exists() and not folder_of_ray.exists()
    finally:
        if script.poll() is None:
            script.terminate()
            script.wait(60)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_killed_cluster_leaves_no_process(tmp_path):
    """SIGKILL for the script's process: the kernel tells every guard."""
    with open(tmp_path / "log", "w") as output:
        env = {**os.environ, "PYTHON": sys.executable}
        script = subprocess.Popen([str(SCRIPT), "start"], cwd=tmp_path, env=env, stdout=output, stderr=output)
    try:
        assert eventually(lambda: (tmp_path / ".dreamer4-cluster" / "env").exists() or script.poll() is not None, 200)
        family = {script.pid, *offspring(script.pid)}
        assert len(family) > 10
    finally:
        script.kill()
        script.wait()
    assert eventually(lambda: not alive(family))
    time.sleep(0.5)
    done = call(tmp_path, "stop")
    assert "no cluster of this directory is running" in done.stderr
