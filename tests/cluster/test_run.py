import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.config import LoggingConfig
from cluster.presets import smoke
from cluster.run import Run, saved
from cluster.settings import override
from dreamer4.errors import RunError

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys
from cluster.run import Run
run = Run.open(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def test_new_run_keeps_its_config(tmp_path):
    with Run.open(tmp_path / "deep" / "run", smoke()) as run:
        assert run.path == tmp_path / "deep" / "run"
    with Run.open(run.path) as again:
        assert again.config == smoke()


def test_missing_run_is_named_and_not_made(tmp_path):
    with pytest.raises(RunError, match=r"no run in .*nothing.*dreamer4 quickstart --run"):
        Run.open(tmp_path / "nothing")
    (tmp_path / "file").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text("{}")  # a dataset is no run
    for name in ("nothing", "file", "data"):
        with pytest.raises(RunError, match=rf"no run in '.*{name}': give a run directory, .*`dreamer4 runs --root"):
            Run.attach(tmp_path / name)
    assert not (tmp_path / "nothing").exists()


def test_another_config_is_refused_by_key_and_nothing_is_lost(tmp_path):
    Run.open(tmp_path, smoke()).close()
    before = (tmp_path / "config.json").read_bytes()
    other = override(smoke(), ["seed=1", "heads.hidden=64"])
    with pytest.raises(RunError) as caught:
        Run.open(tmp_path, other)
    assert "seed is 0 there and 1 here" in str(caught.value)
    assert "heads.hidden is 128 there and 64 here" in str(caught.value)
    assert (tmp_path / "config.json").read_bytes() == before
    Run.open(tmp_path).close()  # the refused one has given the lock back


@pytest.mark.parametrize(
    "assignment", ["resources.workers=3", "evaluation.episodes=9", "logging.wandb=true", "resources.dashboard_port=9"]
)
def test_what_does_not_change_the_result_may_change(tmp_path, assignment):
    Run.open(tmp_path, smoke()).close()
    changed = override(smoke(), [assignment])
    with Run.open(tmp_path, changed) as run:
        assert run.config == changed
    assert Run.attach(tmp_path).config == changed


def test_identity_is_the_config_without_what_may_change(tmp_path):
    with Run.open(tmp_path, smoke()) as run:
        identity = run.identity()
    assert not identity.keys() & {"resources", "evaluation", "logging"}
    other = replace(smoke(), logging=LoggingConfig(wandb=True))
    assert Run(tmp_path, other).identity() == identity
    assert Run(tmp_path, override(smoke(), ["seed=1"])).identity() != identity


def test_two_openers_of_one_run_exclude_each_other(tmp_path):
    with Run.open(tmp_path, smoke()):
        with pytest.raises(RunError, match=f"in use by process {os.getpid()} on "):
            Run.open(tmp_path)
        assert Run.attach(tmp_path).config == smoke()
    Run.open(tmp_path).close()


def test_killed_holder_loses_the_lock_and_is_named_before(tmp_path):
    Run.open(tmp_path, smoke()).close()
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holder = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "open\n"
        with pytest.raises(RunError, match=f"in use by process {holder.pid} on "):
            Run.open(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    Run.open(tmp_path).close()


def test_unwritable_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"can't write to folder '.*file/run'"):
        Run.open(tmp_path / "file" / "run", smoke())


def test_remote_directory_is_refused():
    with pytest.raises(RunError, match="local folders, got 's3://bucket/run'"):
        Run.open("s3://bucket/run", smoke())


@pytest.mark.parametrize("content", ['{"env": "x", "sed": 1}', "{", "[]"])
def test_broken_config_file_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunError, match=r"config\.json'"):
        Run.open(tmp_path)
    assert (tmp_path / "config.json").read_text() == content


def test_finished_stages_are_remembered(tmp_path):
    with Run.open(tmp_path, smoke()) as run:
        assert run.finished("encode") is None
        run.finish("encode", {"frames": 3})
        run.finish("encode", {"frames": 4})
    assert Run.attach(tmp_path).finished("encode") == {"frames": 4}


def test_stages_have_checkpoints_of_their_own(tmp_path):
    with Run.open(tmp_path, smoke()) as run:
        run.checkpoints("agent").save(3, {"w": torch.ones(2)}, {}, run.identity())
        assert run.checkpoints("agent").load(config=run.identity()).step == 3
        assert run.checkpoints("policy").latest() is None


def test_saved_tells_runs_from_other_folders(tmp_path):
    assert not saved(tmp_path)
    Run.open(tmp_path, smoke()).close()
    assert saved(tmp_path)
