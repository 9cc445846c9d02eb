import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.config import COMPUTED, RunConfig, resolve
from cluster.main import main, read_settings
from cluster.presets import PRESETS, smoke
from cluster.run import Run
from cluster.settings import differences, from_json, to_json
from dreamer4.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("interrupts")
STAGES = ("collect", "tokenizer", "encode", "dynamics", "agent", "policy", "evaluate", "report")


@pytest.fixture
def played(monkeypatch, tmp_path):
    """Stages that only note that they were called, in a fresh working directory; gives the notes."""
    notes = []

    def run_stage(name, run):
        notes.append((name, run.path, run.config))
        run.finish(name, {})

    def evaluate_policy(run, policy, episodes):
        return {"policy": policy, "episodes": episodes, "mean_return": 0.51234, "returns": [0.5] * episodes}

    @contextlib.contextmanager
    def ray_session(config):
        yield "http://127.0.0.1:1"

    stages = SimpleNamespace(STAGES=STAGES, run_stage=run_stage, evaluate_policy=evaluate_policy)
    monkeypatch.setitem(sys.modules, "cluster.stages", stages)
    monkeypatch.setitem(sys.modules, "cluster.runtime", SimpleNamespace(ray_session=ray_session))
    monkeypatch.chdir(tmp_path)
    return notes


def names(notes):
    return [name for name, _, _ in notes]


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["evaluate", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    """So that it answers at once."""
    script = (
        "import sys\nfrom cluster.main import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    assert not end.code\n"
        "print('loaded:', *sorted({'torch', 'ray', 'numpy', 'gymnasium'} & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith("usage: dreamer4")
    assert result.stdout.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["a.b=1", "seed=2"], ["a.b=1", "seed=2"]),
        (["--a.b", "1", "--seed=2"], ["a.b=1", "seed=2"]),
        (["--a.b=x=y", "--env", "E"], ["a.b=x=y", "env=E"]),
        (["--a.b", "-1"], ["a.b=-1"]),
        ([], []),
    ],
)
def test_settings_are_written_in_three_ways(words, settings):
    assert read_settings(words) == settings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--polcy", "bc"], "unknown option '--polcy'"),
        (["-x"], "unknown option '-x'"),
        (["tokenizer"], "'tokenizer' is not a setting"),
        (["--a.b"], "'--a.b' is not a setting"),
    ],
)
def test_other_words_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        read_settings(words)


def test_quickstart_does_all_stages_in_order(played, tmp_path, capsys):
    assert main(["quickstart", "--smoke"]) == 0
    assert names(played) == list(STAGES)
    assert {path for _, path, _ in played} == {tmp_path / "runs" / "smoke"}
    out = capsys.readouterr().out
    assert str(tmp_path / "runs" / "smoke" / "config.json") in out
    assert "http://127.0.0.1:1" in out


def test_quickstart_is_laptop_by_default(played, tmp_path):
    assert main(["quickstart", "seed=3"]) == 0
    _, path, config = played[0]
    assert path == tmp_path / "runs" / "quickstart"
    assert config.seed == 3
    assert config.tokenizer_training.steps == PRESETS["laptop"]().tokenizer_training.steps


def test_settings_may_stand_anywhere(played):
    assert main(["quickstart", "seed=3", "--run", "r", "--policy.steps", "7", "--smoke"]) == 0
    config = played[0][2]
    assert (config.seed, config.policy.steps) == (3, 7)
    assert config.dynamics_training.steps == smoke().dynamics_training.steps


def test_existing_run_goes_on_with_its_own_config(played):
    assert main(["quickstart", "--run", "r", "--smoke", "seed=3"]) == 0
    assert main(["quickstart", "--run", "r"]) == 0
    assert main(["quickstart", "--run", "r", "resources.workers=2"]) == 0
    first, second, third = played[0][2], played[len(STAGES)][2], played[2 * len(STAGES)][2]
    assert first == second
    assert (third.seed, third.resources.workers) == (3, 2)


def test_another_config_for_an_existing_run_is_a_mistake(played, capsys):
    assert main(["quickstart", "--run", "r", "--smoke"]) == 0
    assert main(["quickstart", "--run", "r", "--smoke", "seed=3"]) == 2
    assert "seed is 0 there and 3 here" in capsys.readouterr().err
    assert len(played) == len(STAGES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quickstart", "--preset", "laptp"], "did you mean 'laptop'?"),
        (["quickstart", "dynamics.widht=3"], "did you mean 'dynamics.width'?"),
        (["quickstart", "dynamics.width=wide"], "dynamics.width must be a whole number"),
        (["quickstart", "env=nothing"], "unknown environment 'nothing'"),
        (["quickstart", "--smok"], "unknown option '--smok'"),
        (["train", "dynamics", "--run", "nowhere"], "there is no run in"),
        (["encode", "--run", "nowhere"], "there is no run in"),
        (["evaluate", "--run", "nowhere"], "there is no run in"),
        (["evaluate", "--run", "nowhere", "--episodes", "0"], "--episodes must be at least 1"),
        (["report", "--run", "r", "seed=1"], "`report` takes no settings"),
        (["presets", "laptp"], "did you mean 'laptop'?"),
        (["diagnose", "--run", "nowhere"], "there is no run in"),
        (["report", "--run", "nowhere"], "there is no run in"),
        (["push", "--run", "nowhere", "--to", "hub"], "there is no run in"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(played, tmp_path, capsys, arguments, message):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("dreamer4: ") and err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == [] and played == []


@pytest.mark.parametrize(
    "arguments",
    [[], ["quikstart"], ["train", "tokeniser", "--run", "r"], ["quickstart", "--smoke", "--preset", "laptop"]],
)
def test_wrong_words_show_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: dreamer4" in capsys.readouterr().err


def test_single_stages_want_their_order(played, capsys):
    assert main(["data", "collect", "--run", "r", "--preset", "smoke"]) == 0
    assert main(["encode", "--run", "r"]) == 2
    assert "stage 'tokenizer'" in capsys.readouterr().err
    assert main(["train", "tokenizer", "--run", "r"]) == 0
    assert main(["encode", "--run", "r"]) == 0
    assert main(["train", "dynamics", "--run", "r"]) == 0
    assert names(played) == ["collect", "tokenizer", "encode", "dynamics"]


def test_single_stage_may_be_done_again(played):
    """Stages are idempotent; whether there is work left is theirs to tell."""
    for _ in range(2):
        assert main(["data", "collect", "--run", "r"]) == 0
    assert names(played) == ["collect", "collect"]


def test_evaluation_prints_and_writes_what_it_measured(played, tmp_path, capsys):
    Run.open(tmp_path / "r", resolve(smoke())).close()
    assert main(["evaluate", "--run", "r", "--policy", "bc", "--episodes", "3", "--json", "out/bc.json"]) == 0
    out = capsys.readouterr().out
    assert "0.5123" in out and "returns" not in out
    measured = json.loads((tmp_path / "out" / "bc.json").read_text())
    assert measured == {"policy": "bc", "episodes": 3, "mean_return": 0.51234, "returns": [0.5] * 3}
    assert main(["evaluate", "--run", "r", "evaluation.episodes=5"]) == 0
    out = capsys.readouterr().out
    assert "pmpo" in out and "5" in out
    assert main(["evaluate", "--run", "r", "--policy", "iql@0.03", "--episodes", "1"]) == 0
    assert "iql@0.03" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["evaluate", "--run", "r", "--policy", "pmp"])
    assert "invalid choice: 'pmp' (choose from bc, pmpo" in capsys.readouterr().err


def test_report_and_compare_read_runs(played, monkeypatch, tmp_path, capsys):
    run = Run.open(tmp_path / "r", smoke())  # in use: both only read
    report = SimpleNamespace(write_report=lambda run: run.path / "report.html")
    monkeypatch.setitem(sys.modules, "cluster.reports.report", report)
    monkeypatch.setitem(
        sys.modules, "cluster.reports.compare", SimpleNamespace(compare=lambda paths: f"{len(paths)} runs")
    )
    assert main(["report", "--run", "r"]) == 0
    assert main(["compare", "r", "s"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'r' / 'report.html'}\n2 runs\n"
    run.close()


def test_presets_are_listed_with_their_sizes(capsys):
    assert main(["presets"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in PRESETS)
    assert "dynamics 1704 M" in out
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_said_of_a_preset_ends_with_its_sentence(name, capsys):
    assert main(["presets"]) == 0
    about = " ".join(str(PRESETS[name].__doc__).partition("\n\n")[0].split())
    assert about.endswith(".") and f"{name} {about} tokenizer" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", PRESETS)
def test_printed_preset_has_all_keys_but_those_that_are_computed(name, capsys):
    assert main(["presets", name]) == 0
    printed, config = json.loads(capsys.readouterr().out), PRESETS[name]()
    found, whole = from_json(RunConfig, printed), to_json(config)
    assert {d.key for d in differences(found, config)} <= set(COMPUTED)
    for key in COMPUTED:
        section, _, leaf = key.partition(".")
        del whole[section][leaf]
    assert printed == whole


def test_mistake_within_a_stage_is_one_sentence_too(played, capsys):
    def run_stage(name, run):
        raise DataError("'shard-00001.arrow' is cut short")

    sys.modules["cluster.stages"].run_stage = run_stage
    assert main(["quickstart", "--smoke"]) == 2
    assert capsys.readouterr().err == "dreamer4: 'shard-00001.arrow' is cut short\n"
    assert main(["quickstart", "--smoke"]) == 2  # the lock was given back


def test_bug_keeps_its_traceback(played):
    def run_stage(name, run):
        raise ZeroDivisionError

    sys.modules["cluster.stages"].run_stage = run_stage
    with pytest.raises(ZeroDivisionError):
        main(["quickstart", "--smoke"])


INTERRUPTED = """
import contextlib, os, signal, sys, time
from types import SimpleNamespace
from cluster.main import main

def run_stage(name, run):
    print("interrupt me", flush=True)
    time.sleep(60)

@contextlib.contextmanager
def ray_session(config):
    yield ""

sys.modules["cluster.stages"] = SimpleNamespace(STAGES=["collect"], run_stage=run_stage)
sys.modules["cluster.runtime"] = SimpleNamespace(ray_session=ray_session)
sys.exit(main(["quickstart", "--smoke", "--run", sys.argv[1]]))
"""


def test_interrupt_works_even_where_the_parent_ignores_it(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path / "r")],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert process.stdout is not None
    while process.stdout.readline() != "interrupt me\n":
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.strip() == "dreamer4: interrupted; the same command goes on"
    Run.open(tmp_path / "r").close()
