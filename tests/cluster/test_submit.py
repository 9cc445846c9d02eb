"""Jobs on a real cluster that wants a token, submitted as a user does, from a folder elsewhere."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
from ray._private.runtime_env.packaging import create_package
from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

from cluster.config import RunConfig
from cluster.local.cluster import LocalCluster
from cluster.main import build_parser, main
from cluster.paths import LISTS, SETTINGS
from cluster.run import Run
from cluster.submit import PATHS, absolute, address, source
from cluster.telemetry import read_metrics
from dreamer4.errors import ConfigError, RunError

ROOT = Path(__file__).parents[2]
HERE = Path("/here")
LONG = ["tokenizer_training.steps=400", "tokenizer_training.save_every=20"]

on_a_cluster = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster() as cluster:
        cluster.add_node(cpus=2)
        yield cluster


@pytest.fixture(scope="module")
def folder(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the user is; with a run that was collected by a job, and that job's output."""
    folder = tmp_path_factory.mktemp("user")
    done = submit(cluster.env(), folder, "data", "collect", "--preset", "smoke", "--run", "mine", *LONG)
    (folder / "output").write_text(f"{done.returncode}\n{done.stdout}{done.stderr}")
    return folder


def start(env: Mapping[str, str], folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cluster.main", "submit", *words]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=env, cwd=folder, text=True, **pipes)


def submit(env: Mapping[str, str], folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    process = start(env, folder, "--", *command)
    output, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


# what is said before anything is sent


def test_paths_are_taken_from_where_the_user_is():
    words = absolute(["--", "evaluate", "--run", "a", "--json=b.json", "--policy", "bc", "seed=1"], HERE)
    assert words == ["evaluate", "--run", "/here/a", "--json=/here/b.json", "--policy", "bc", "seed=1"]
    assert absolute(["report", "--run", "/there/a"], HERE) == ["report", "--run", "/there/a"]
    assert absolute(["compare", "a", "/b"], HERE) == ["compare", "/here/a", "/b"]


@pytest.mark.parametrize(
    ("command", "placed"),
    [
        (
            "data import video --source=films --out set --like /there/set --exclude no.txt --fps 10",
            "data import video --source=/here/films --out /here/set --like /there/set --exclude /here/no.txt --fps 10",
        ),
        ("data inspect --data set --sheet s.png", "data inspect --data /here/set --sheet /here/s.png"),
        ("data inspect --data s3://a/set --sheet s.png", "data inspect --data s3://a/set --sheet /here/s.png"),
        ("data push --data set --to hf://me/set", "data push --data /here/set --to hf://me/set"),
        ("pull --from out --run a", "pull --from /here/out --run /here/a"),
        ("bench training --profile p --turns 3", "bench training --profile /here/p --turns 3"),
        ("encode --run a data.source=set seed=1", "encode --run /here/a data.source=/here/set seed=1"),
        ("encode --run a --data.source set --seed 1", "encode --run /here/a --data.source /here/set --seed 1"),
        ("encode --run a --data.source=s3://a/set", "encode --run /here/a --data.source=s3://a/set"),
        ("encode --run a data.source=none", "encode --run /here/a data.source=none"),
        ("encode --run a data.mixture=films", "encode --run /here/a data.mixture=films"),
    ],
)
def test_every_path_but_no_url_is_taken_from_where_the_user_is(command, placed):
    assert absolute(command.split(), HERE) == placed.split()


@pytest.mark.parametrize("words", [["data.mixture={}"], ["--data.mixture={}"], ["--data.mixture", "{}"]])
def test_paths_within_a_list_are_taken_from_where_the_user_is(words):
    def command(*places):
        return ["encode", *(word.format(json.dumps(places)) for word in words)]

    assert absolute(command("a", "/b", "s3://c"), HERE) == command("/here/a", "/b", "s3://c")
    assert absolute(command(1), HERE) == command(1)  # no path: a mistake that the job tells


def options_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Those of a command and all below it, but not those of `submit` itself."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, verb in action.choices.items():
                yield from () if name == "submit" else options_of(verb)
        else:
            yield action


def test_every_option_that_names_a_path_is_known():
    places = ("DATASET", "TARGET", "SOURCE")  # of options that take a URL as well, and so are plain texts
    found = [a for a in options_of(build_parser()) if a.type is Path or a.metavar in places]
    assert {name for action in found for name in action.option_strings} == set(PATHS)


def test_every_setting_that_names_a_path_is_known():
    """Texts without a default are places, but for the URL that checkpoints are copied to, and lists are of policies."""
    assert {*SETTINGS, "resources.storage"} == set(settings_of(RunConfig, str | None))
    assert {*LISTS, "controls"} == set(settings_of(RunConfig, tuple[str, ...]))


def settings_of(kind: type, wanted: object, above: str = "") -> Iterator[str]:
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            yield from settings_of(hint, wanted, f"{above}{name}.")
        elif hint == wanted:
            yield above + name


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ([], "submit what"),
        (["--"], "submit what"),
        (["submit", "--", "presets"], "can't submit jobs"),
        (["quickstart", "--smoke"], "needs its --run"),
    ],
)
def test_what_makes_no_sense_as_a_job_is_refused(command, sentence):
    with pytest.raises(ConfigError, match=sentence):
        absolute(command, HERE)


def test_address_comes_from_the_option_or_the_environment():
    both = {"RAY_DASHBOARD_ADDRESS": "a", "RAY_API_SERVER_ADDRESS": "b"}
    assert [address("x", both), address(None, both), address(None, {"RAY_API_SERVER_ADDRESS": "b"})] == ["x", "a", "b"]
    with pytest.raises(ConfigError, match=r"--address .*RAY_DASHBOARD_ADDRESS"):
        address(None, {"RAY_ADDRESS": "127.0.0.1:6379"})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--", "presets"], "which cluster"),
        (["--address", "ray://127.0.0.1:9", "--", "presets"], "'ray://127.0.0.1:9' is not the address of a dashboard"),
        (["--address", "127.0.0.1:9", "--", "presets"], "can't reach a Ray dashboard at 'http://127.0.0.1:9'"),
        (["--", "train", "tokenizer", "--run", "x", "--no-wait"], "unknown option '--no-wait'"),
    ],
)
def test_mistakes_are_one_sentence(monkeypatch, capsys, words, sentence):
    for name in ("RAY_DASHBOARD_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert main(["submit", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_command_that_is_wrong_is_not_sent(monkeypatch):
    monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", "127.0.0.1:9")
    with pytest.raises(SystemExit) as ended:
        main(["submit", "--", "train", "tokenizr", "--run", "x"])
    assert ended.value.code == 2


def test_relative_run_in_a_job_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(RunError, match=r"'runs/mine' is relative.*absolute path"):
        Run.open("runs/mine")


def test_little_is_shipped(tmp_path):
    """What Ray itself would pack, for `dreamer4 submit` and for `ray job submit --working-dir .`."""
    package = tmp_path / "package.zip"

    def pack(folder: str, excludes: list[str]) -> None:
        create_package(folder, package, include_gitignore=True, excludes=excludes)

    assert source() == ROOT
    upload_working_dir_if_needed({"working_dir": str(ROOT)}, include_gitignore=True, upload_fn=pack)
    with zipfile.ZipFile(package) as file:
        names = {name for name in file.namelist() if not name.endswith("/")}
    assert package.stat().st_size < 10_000_000
    assert {"cluster/main.py", "dreamer4/types.py", "pyproject.toml"} <= names
    tops = {name.partition("/")[0] for name in names}
    assert not tops & {".git", ".venv", "runs", "tests", "docs"}


# a cluster from here on


@pytest.mark.usefixtures("folder")
class TestJobs:
    pytestmark = on_a_cluster

    def test_output_arrives_and_the_run_is_where_the_user_is(self, folder):
        output = (folder / "output").read_text()
        assert output.startswith("0\n"), output
        assert f"run     {folder / 'mine'}" in output and re.search(r"collect \d/\d", output)
        assert "WARNING" not in output
        assert Run.attach(folder / "mine").finished("collect") is not None

    @pytest.mark.cluster
    def test_mistake_in_the_job_is_the_exit_status(self, cluster, folder):
        done = submit(cluster.env(), folder, "train", "dynamics", "--run", "mine")
        assert done.returncode == 2
        assert "stage 'tokenizer' of run" in done.stdout

    @pytest.mark.parametrize(
        ("token", "sentence"),
        [("", "there is no token in '.*token'"), ("0" * 64, "refuses the token in '.*token'")],
    )
    def test_token_is_wanted(self, cluster, tmp_path, token, sentence):
        path = tmp_path / "token"
        if token:
            path.write_text(token)
        env = {**cluster.env(), "RAY_AUTH_TOKEN_PATH": str(path)}
        done = submit(env, tmp_path, "presets")
        assert done.returncode == 2 and re.search(f"^dreamer4: .*{sentence}", done.stderr), done.stderr

    def test_token_is_used_without_being_told_to(self, cluster, tmp_path):
        """RAY_AUTH_TOKEN_PATH alone is enough; Ray wants RAY_AUTH_MODE=token as well."""
        env = {name: value for name, value in cluster.env().items() if name != "RAY_AUTH_MODE"}
        process = start(env, tmp_path, "--no-wait", "--", "presets")
        output, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        assert re.fullmatch(r"job +(\w+) on (\S+)\nfollow +ray job logs --address \2 --follow \1\n", output)

    @pytest.mark.cluster
    def test_ray_job_submit_does_the_same(self, cluster, folder):
        job = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", ".", "--", "python"]

        def ray_job(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([*job, *words], env=cluster.env(), cwd=ROOT, capture_output=True, text=True)

        where = "import cluster, dreamer4, ray; ray.init(); print(cluster.__file__, flush=True)"
        where += "; print(ray.get(ray.remote(num_cpus=1)(lambda: dreamer4.__file__).remote()))"
        done = ray_job("-c", where)
        assert done.returncode == 0, done.stdout + done.stderr
        shipped = re.findall(r"^/.*/working_dir_files/_ray_pkg_\w+/\w+/__init__.py$", done.stdout, re.MULTILINE)
        assert len(shipped) == 2, done.stdout  # in the job, and in an actor
        done = ray_job("-m", "cluster.main", "train", "dynamics", "--run", str(folder / "mine"))
        assert done.returncode == 1 and "stage 'tokenizer' of run" in done.stdout

    @pytest.mark.cluster
    def test_interrupted_job_stops_and_the_same_command_goes_on(self, cluster, folder):
        run = Run.attach(folder / "mine")
        command = ["train", "tokenizer", "--run", "mine"]
        process = start({**cluster.env(), "PYTHONUNBUFFERED": "1"}, folder, "--", *command)
        deadline = time.monotonic() + 120
        while run.checkpoints("tokenizer").latest() is None:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=100)
        assert process.returncode == 130, errors
        assert "stopping job" in errors and output.count("Running entrypoint") == 1  # nothing is printed twice
        assert status(cluster, output) == "STOPPED"
        step = run.checkpoints("tokenizer").load().step
        assert 0 < step < 400 and run.finished("tokenizer") is None
        before = read_metrics(run.metrics_path, "tokenizer")[:step]

        done = submit(cluster.env(), folder, *command)
        assert done.returncode == 0, done.stdout + done.stderr
        rows = read_metrics(run.metrics_path, "tokenizer")
        assert rows[:step] == before  # it went on from there
        assert [row["step"] for row in rows] == list(range(400))
        assert run.finished("tokenizer") is not None

    @pytest.mark.cluster
    def test_too_much_is_refused(self, cluster, tmp_path):
        (tmp_path / "data").write_bytes(os.urandom(101 * 2**20))
        script = (
            "import sys; from pathlib import Path; from cluster.submit import Client\n"
            "from dreamer4.errors import RunError\n"
            "try: Client(sys.argv[1]).submit(['presets'], root=Path(sys.argv[2]))\n"
            "except RunError as error: print(error)"
        )
        command = [sys.executable, "-c", script, cluster.dashboard_url, str(tmp_path)]
        done = subprocess.run(command, env=cluster.env(), cwd=ROOT, capture_output=True, text=True)
        assert f"'{tmp_path}' is too large to be shipped, Ray takes 100 MiB" in done.stdout, done.stderr


def status(cluster: LocalCluster, output: str) -> str:
    """Of the job that a submission named."""
    job = re.search(r"^job +(\w+)", output, re.M)
    assert job is not None
    command = [sys.executable, "-m", "ray.scripts.scripts", "list", "jobs", "--format", "json", "--limit", "100"]
    done = subprocess.run(command, env=cluster.env(), capture_output=True, text=True, check=True)
    return next(entry["status"] for entry in json.loads(done.stdout) if entry["submission_id"] == job[1])
