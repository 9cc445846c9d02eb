"""Shell scripts: a linter, and what they do when the programs that they call are replaced by ones that take notes."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from living import eventually
from ray.scripts.scripts import start

from cluster.config import resolve
from cluster.local.ray_start import SETTINGS
from cluster.main import build_parser, main, read_settings
from cluster.presets import preset
from cluster.run import Run
from cluster.settings import override
from cluster.submit import absolute
from dreamer4.actions import ActionSpace
from dreamer4.envs.registry import EnvSpec
from dreamer4.errors import RunError

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "deploy").rglob("*.sh"))
RECIPES = {"laptop": [], "crafter": ["data.source=set"], "minecraft": ["data.source=set", "resources.trainers=16"]}
STAGES = ["collect", "tokenizer", "encode", "dynamics", "agent", "policy"]

# Notes its own name, its arguments, and what it is told of Ray; `ray start --block` stays, as the real one does.
NOTE = f"""#!{sys.executable}
import json, os, signal, sys, time
from pathlib import Path
name, words = Path(sys.argv[0]).name, sys.argv[1:]
told = {{key: value for key, value in os.environ.items() if key.startswith(("RAY_", "GRPC_"))}}
token = Path(told.get("RAY_AUTH_TOKEN_PATH", "/nowhere"))
mode = oct(token.stat().st_mode) if token.exists() else None
def note(event):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(json.dumps([name, event, words, told, mode, os.getpid()]) + "\\n")
def end(number, frame):
    note(signal.Signals(number).name)
    sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, end)
note("start")
if "--block" in words or "WAIT" in words:
    time.sleep(600)
sys.exit(int(os.environ.get("FAKE_STATUS", "0")) if name == "dreamer4" else 0)
"""
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
printf '%s\\n' one two three
"""


def lint(script: Path | str) -> str:
    """What bash and shellcheck say of a file, or of a text."""
    text = script if isinstance(script, str) else script.read_text()
    said = ""
    for command in (["bash", "-n"], [str(BIN / "shellcheck"), "--shell=bash", "--color=never", "-"]):
        done = subprocess.run(command, input=text, capture_output=True, text=True)
        said += done.stdout + done.stderr
    return said


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_is_clean(name):
    path = ROOT / name
    assert lint(path) == ""
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()


@pytest.mark.parametrize("text", ["rm -rf $1/x\n", "if true; then\n", "cd /x\nls\n", "for f in $(ls); do :; done\n"])
def test_worse_script_is_found(text):
    assert lint(f"#!/usr/bin/env bash\n{text}") != ""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with programs that take notes, as a virtual environment has it."""
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    for name, text in {"dreamer4": NOTE, "ray": NOTE, "srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    return folder


def environment(programs: Path, **more: str) -> dict[str, str]:
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "NOTES": str(programs / "notes"), **more}


def notes(programs: Path) -> list[list]:
    path = programs / "notes"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def recipe(programs: Path, name: str, run: Path, **more: str) -> list[list[str]]:
    """The commands of ours that a recipe gives, in order."""
    script = ROOT / "deploy" / "runs" / f"{name}.sh"
    env = environment(programs, **more)
    done = subprocess.run([script, str(run), *RECIPES[name], "seed=3"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [words for program, event, words, *_ in notes(programs) if (program, event) == ("dreamer4", "start")]


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_all_stages_in_order_in_commands_that_we_understand(programs, tmp_path, name):
    commands = recipe(programs, name, tmp_path / "run", RAY_DASHBOARD_ADDRESS="http://127.0.0.1:8265")
    verbs, evaluated = [], []
    for command in commands:
        assert command[:2] == ["submit", "--"]
        words = absolute(command[1:], Path("/here"))
        options, rest = build_parser().parse_known_args(words)
        assert options.run == tmp_path / "run"
        settings = read_settings(rest)
        if options.takes_settings:
            config = override(preset(name), settings)
            assert config.seed == 3 and config.data.source in (None, "/here/set")
        if options.verb == "evaluate":
            evaluated.append(options.policy)
        verbs.append(getattr(options, "stage", options.verb))
        if options.verb == "data":
            assert options.preset == name
    assert verbs == [*STAGES, "evaluate", "evaluate", "report"]
    assert evaluated == ["bc", "pmpo"]


def test_evaluation_of_what_cannot_be_played_is_no_failure(monkeypatch, tmp_path, capsys):
    """A recipe on imported recordings goes on to its report. Negative control: what can be played, is."""

    def ray_session(config):
        raise RunError("played")

    monkeypatch.setattr("cluster.runtime.ray_session", ray_session)
    laptop = preset("laptop")
    theirs = EnvSpec("theirs", laptop.tokenizer.frame, ActionSpace.discrete(5), ("x",))
    for name, status in {"theirs": 0, laptop.env: 2}.items():
        run = tmp_path / name
        Run.open(run, resolve(replace(laptop, env=name), theirs)).close()
        assert main(["evaluate", "--run", str(run), "--policy", "bc", "--json", str(run / "bc.json")]) == status
        assert ("'theirs' can't be played here" in capsys.readouterr().out) == (status == 0)
        assert not (run / "bc.json").exists()


def test_recipe_without_a_cluster_runs_here(programs, tmp_path):
    commands = recipe(programs, "laptop", tmp_path / "run")
    assert commands[0][:2] == ["data", "collect"] and not any("submit" in command for command in commands)


def test_recipe_stops_at_the_first_failure(programs, tmp_path):
    script = ROOT / "deploy" / "runs" / "laptop.sh"
    done = subprocess.run([script, str(tmp_path / "run")], env=environment(programs, FAKE_STATUS="2"))
    assert done.returncode == 2 and len(notes(programs)) == 1


def test_paper_wants_a_cluster(programs, tmp_path):
    script = ROOT / "deploy" / "runs" / "minecraft.sh"
    done = subprocess.run([script, str(tmp_path)], env=environment(programs), capture_output=True, text=True)
    assert done.returncode != 0 and "RAY_DASHBOARD_ADDRESS" in done.stderr and not notes(programs)


# Slurm


def slurm(programs: Path, *words: str, **more: str) -> subprocess.Popen[str]:
    folder = programs.parent.parent
    told = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "x", "SLURM_SUBMIT_DIR": str(folder)}
    env = environment(programs, DREAMER4_VENV=str(programs.parent), **told, **more)
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([ROOT / "deploy" / "slurm.sh", *words], env=env, cwd=folder, text=True, **pipes)


def test_slurm_starts_a_head_and_all_nodes_and_takes_them_down(programs, tmp_path):
    process = slurm(programs, "train", "policy", "--run", "/shared/x", FAKE_STATUS="3")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 3, output + errors  # that of the command
    found = notes(programs)
    starts = [
        start.make_context("start", words[1:]).params
        for _, event, words, *_ in found
        if words[0] == "start" and event == "start"
    ]
    heads, workers = ([one for one in starts if one["head"] == head] for head in (True, False))
    assert len(heads) == 1 and len(workers) == 3
    assert (heads[0]["num_cpus"], heads[0]["num_gpus"], heads[0]["dashboard_host"]) == (0, 0, "127.0.0.1")
    assert {one["address"] for one in workers} == {f"{heads[0]['node_ip_address']}:{heads[0]['port']}"}
    assert heads[0]["temp_dir"] != workers[0]["temp_dir"] and len(workers[0]["temp_dir"]) < 40

    (submitted,) = [words for program, event, words, *_ in found if program == "dreamer4"]
    assert submitted[:3] == ["submit", "--address", f"http://127.0.0.1:{heads[0]['dashboard_port']}"]
    options, rest = build_parser().parse_known_args(submitted)
    assert absolute(options.command, tmp_path) == ["train", "policy", "--run", "/shared/x"] and rest == []

    for _, _, _, told, mode, _ in found:
        assert told["RAY_AUTH_MODE"] == "token" and mode == "0o100600"
        assert {
            name: told[name] for name in SETTINGS if "health" not in name and "GRACEFUL" not in name
        }.items() <= SETTINGS.items()
    ended = {pid for _, event, words, *_, pid in found if event == "SIGTERM"}
    assert ended == {pid for _, event, words, *_, pid in found if "--block" in words}, "nothing stays"
    assert not list(tmp_path.glob(".slurm-*")), "nor does the token"


def test_slurm_hands_on_the_end_of_its_time(programs, tmp_path):
    process = slurm(programs, "WAIT")
    assert eventually(lambda: any(note[0] == "dreamer4" for note in notes(programs)), 60)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert [event for program, event, *_ in notes(programs) if program == "dreamer4"] == ["start", "SIGINT"]
    assert not list(tmp_path.glob(".slurm-*"))


def test_slurm_says_what_is_missing(programs):
    for words, more, sentence in (((), {}, "usage: sbatch"), (("runs",), {"DREAMER4_VENV": "/nowhere"}, "no Ray in")):
        env = environment(programs, SLURM_JOB_ID="1", **more)
        done = subprocess.run([ROOT / "deploy" / "slurm.sh", *words], env=env, capture_output=True, text=True)
        assert done.returncode == 2 and sentence in done.stderr
