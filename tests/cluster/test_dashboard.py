"""`dreamer4 dashboard` without a cluster: what it says of a run, whom it answers, and how mistakes are told."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from cluster.config import configure
from cluster.dashboard.diagnosis import OLD, QUIET, diagnose
from cluster.dashboard.page import HTML, PageServer, snapshot
from cluster.dashboard.panels import ROWS, Line, gauge
from cluster.dashboard.source import MOST_POINTS, FileSource, PrometheusSource, Scope, scoped
from cluster.main import main
from cluster.policy.autoscale import IDLE, STARVING
from cluster.policy.telemetry import FILE, METRICS
from cluster.presets import smoke
from cluster.run import Run
from dreamer4.errors import RunError

START = 1_700_000_000.0
EVER = (0.0, 4e9)


def row(number: int, **changed: Any) -> dict[str, Any]:
    """A row of telemetry of a run that grows from one worker to two."""
    workers = 1 + (number >= 10)
    told: dict[str, Any] = dict.fromkeys(METRICS, 0.0)
    told |= {
        "step": number,
        "steps": 30,
        "frames_per_s": 1000.0 * workers,
        "worker_frames_per_s": {str(name): 1000.0 for name in range(1, workers + 1)},
        "workers_ready": workers,
        "workers_wanted": 2,
        "learner_starves": 0.6,
        "store_bytes": 500 * number,
        "learner_metric": {"entropy": 1.5},
        "cost_per_million_frames": None,
    }
    return {"stage": "policy", "time": START + 2 * number, **told, **changed}


def write(path: Path, rows: list[dict[str, Any]], torn: str = "") -> None:
    path.mkdir(exist_ok=True)
    with open(path / FILE, "a") as file:
        file.write("".join(json.dumps(one) + "\n" for one in rows) + torn)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with Run.open(tmp_path / "mine", configure(smoke(), [])) as run:
        write(run.path, [row(number) for number in range(20)])
        return run.path


@pytest.fixture
def page(run: Path) -> Iterator[str]:
    with PageServer(FileSource([run])) as server:
        yield server.url


# numbers from files


def test_page_of_a_run_that_has_ended_shows_its_curves(run):
    told = snapshot(FileSource([run]), None, None, 0)
    assert (told["run"], told["stage"], told["runs"]) == ("mine", "policy", [("mine", "policy")])
    panels = {panel["title"]: panel for one in told["rows"] for panel in one["panels"]}
    (frames,) = panels["Imagined frames per second"]["curves"]
    assert frames["points"] == [(START + 2 * n, 1000.0 * (1 + (n >= 10))) for n in range(20)]
    names = [curve["name"] for curve in panels["Imagined frames per second of each worker"]["curves"]]
    assert names == ["mean", "worker 1", "worker 2"]
    busy = next(curve for curve in panels["Who waits for whom"]["curves"] if curve["name"] == "learner busy")
    assert busy["points"][0][1] == pytest.approx(0.4)
    (rate,) = panels["Rollouts through the object store"]["curves"]
    assert [value for _, value in rate["points"]] == [250.0] * 19
    assert "Object store" not in panels and "Cost of a million imagined frames" not in panels, "nothing is known of it"
    assert told["latest"]["step"] == 19 and told["latest"]["cost_per_million_frames"] is None
    assert told["heard"] == START + 38 and "Not running: 19 of 30" in told["diagnosis"]["text"]


def test_last_minutes_are_those_before_the_end_of_the_run(run):
    write(run, [row(number, time=START + 1000 + number) for number in range(100)])
    told = snapshot(FileSource([run]), "mine", "policy", 60)
    assert (told["start"], told["end"]) == (START + 1039, START + 1099)
    points = told["rows"][0]["panels"][0]["curves"][0]["points"]
    assert [when for when, _ in points] == [START + 1039 + n for n in range(61)]


def test_what_is_written_later_is_shown_and_half_a_line_waits_for_its_end(run):
    source = FileSource([run])
    scope = Scope("mine", "policy", *EVER)
    whole = json.dumps(row(20))
    step = gauge("", "step")
    assert len(source.curves(step, scope)[0].points) == 20
    write(run, [], torn=whole[:50])
    assert len(source.curves(step, scope)[0].points) == 20
    write(run, [], torn=whole[50:] + "\n{broken\n")
    write(run, [row(21)])
    assert [value for _, value in source.curves(step, scope)[0].points] == list(range(22))


def test_row_of_an_older_version_is_shown_as_far_as_it_goes(tmp_path):
    write(tmp_path / "old", [{"stage": "policy", "time": START, "step": 3, "frames_per_s": 10.0}])
    told = snapshot(FileSource([tmp_path / "old"]), None, None, 0)
    assert told["latest"]["frames_per_s"] == 10.0 and told["latest"]["workers_ready"] is None


def test_long_runs_are_thinned_to_means(tmp_path):
    write(tmp_path / "long", [row(number, frames_per_s=float(number % 2)) for number in range(10 * MOST_POINTS)])
    source = FileSource([tmp_path / "long"])
    (curve,) = source.curves(gauge("", "frames_per_s"), Scope("long", "policy", *EVER))
    assert len(curve.points) == MOST_POINTS and {value for _, value in curve.points} == {0.5}
    assert curve.points[-1][0] == START + 2 * (10 * MOST_POINTS - 1)


def test_newest_run_comes_first_and_stages_are_apart(tmp_path):
    write(tmp_path / "a", [row(0), row(1, stage="shuffled")])
    write(tmp_path / "b", [row(5)])
    source = FileSource([tmp_path / "a", tmp_path / "b"])
    assert source.runs() == [("b", "policy"), ("a", "shuffled"), ("a", "policy")]
    told = snapshot(source, "a", "shuffled", 0)
    assert told["latest"]["step"] == 1 and told["start"] == START + 2


def test_runs_of_the_same_name_are_told_apart_by_their_path(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "same", [row(1)])
    source = FileSource([tmp_path / "x" / "same", tmp_path / "y" / "same"])
    assert {name for name, _ in source.runs()} == {str(tmp_path / folder / "same") for folder in ("x", "y")}


def test_run_that_has_not_begun_stage_four_says_so(tmp_path):
    told = snapshot(FileSource([tmp_path]), None, None, 0)
    assert told["rows"] == [] and "told nothing yet" in told["diagnosis"]["text"]


def test_counter_that_starts_again_has_not_shrunk(tmp_path):
    write(tmp_path / "again", [row(0, store_bytes=1000), row(1, store_bytes=10)])
    line = next(line for rows in ROWS.values() for panel in rows for line in panel.lines if line.shape == "rate")
    (curve,) = FileSource([tmp_path / "again"]).curves(line, Scope("again", "policy", *EVER))
    assert curve.points == [(START + 2, 5.0)]


def test_every_number_of_a_run_on_the_dashboard_is_in_its_telemetry():
    keys = {line.key.partition(".")[0] for rows in ROWS.values() for p in rows for line in p.lines if line.key}
    assert keys <= METRICS.keys()


def test_names_of_runs_can_not_leave_their_query():
    line = gauge("", "step")
    assert scoped(line.query, 'a"} or x{b="', "policy").count('\\"') == 2
    assert 'run="mine",stage="policy"' in scoped(line.query, "mine", "policy")


# what it says


def healthy(**changed: float) -> dict[str, float]:
    known = dict.fromkeys(METRICS, 0.0)
    return {**known, "step": 5, "steps": 10, "workers_ready": 2, "workers_wanted": 2, "staleness": 1, **changed}


@pytest.mark.parametrize(
    ("latest", "age", "level", "text"),
    [
        ({}, 0, "note", "told nothing yet"),
        (healthy(), 1, "good", "Balanced"),
        (healthy(step=10), 999, "good", "Done: 10 of 10 updates, last heard of 17 min ago"),
        (healthy(), OLD + 1, "note", "Not running: 5 of 10 updates"),
        (healthy(learner_starves=0.9), 1, "bad", "The learner starves 90% of the time with 2 workers"),
        (healthy(learner_starves=STARVING + 0.05), 1, "note", "more workers help"),
        (healthy(learner_starves=0.9, workers_pending=1), 1, "note", "1 of 2 workers are to come"),
        (healthy(learner_starves=0.5, workers_idle=0.5), 1, "note", "Both sides wait"),
        (healthy(workers_idle=IDLE + 0.1), 1, "note", "the learner is the bottleneck"),
        (healthy(workers_ready=0, workers_pending=2), 1, "note", "No worker imagines yet: 2 of 2"),
        (healthy(since_update_s=QUIET + 60), 1, "bad", "No update for 3 min: see the oldest rollout"),
        (healthy(since_update_s=QUIET + 60, workers_ready=0, workers_pending=2), 1, "bad", "2 workers wait for a node"),
    ],
)
def test_what_holds_a_run_back_is_said_in_one_sentence(latest, age, level, text):
    said = diagnose(latest, age)
    assert said.level == level and text in said.text


# whom it answers


def ask(url: str, path: str, host: str) -> tuple[int, bytes, dict[str, str]]:
    connection = HTTPConnection(urlsplit(url).netloc, timeout=10)
    connection.request("GET", path, headers={"Host": host})
    answer = connection.getresponse()
    return answer.status, answer.read(), dict(answer.getheaders())


def test_page_needs_nothing_from_elsewhere(page):
    status, body, headers = ask(page, "/", urlsplit(page).netloc)
    assert status == 200 and body == HTML.read_bytes()
    text = body.decode()
    assert set(re.findall(r"https?://[\w./]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|<link[^>]+stylesheet|<script src", text)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
    assert "prefers-color-scheme: dark" in text


def test_another_name_for_this_machine_is_refused(page):
    """A page of somebody else's, whose name was made to mean 127.0.0.1, learns nothing."""
    port = urlsplit(page).port
    assert ask(page, "/data", f"localhost:{port}")[0] == 200
    for path in ("/", "/data"):
        status, body, _ = ask(page, path, f"evil.example:{port}")
        assert status == 403 and b"mine" not in body


def test_only_loopback_is_listened_at(run):
    with PageServer(FileSource([run])) as server:
        assert server.server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("path", "status"), [("/../etc/passwd", 404), ("/data?seconds=x", 400), ("/data?run=none", 200)]
)
def test_strange_requests_are_answered_in_peace(page, path, status):
    try:
        with urlopen(page + path) as answer:
            assert answer.status == status
    except HTTPError as error:
        assert error.code == status
        error.close()


@pytest.mark.parametrize(
    ("error", "told"), [(BrokenPipeError(), ""), (ValueError("a mistake of ours"), "a mistake of ours")]
)
def test_a_browser_that_leaves_early_is_nothing_to_tell(run, capsys, error, told):
    with PageServer(FileSource([run])) as server:
        try:
            raise error
        except type(error):
            server.server.handle_error(None, ("127.0.0.1", 1))
    said = capsys.readouterr().err
    assert told in said and bool(said) == bool(told)


def test_source_that_does_not_answer_is_named():
    with PageServer(PrometheusSource("http://127.0.0.1:9")) as server, pytest.raises(HTTPError) as refused:
        urlopen(f"{server.url}/data")
    assert refused.value.code == 502
    told = json.load(refused.value)
    assert re.fullmatch(
        r"Prometheus at 'http://127\.0\.0\.1:9' doesn't answer \(.*refused\): is it running\?", told["error"]
    )


# the command


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory without runs, an environment without a cluster."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--run", "nowhere"], "there is no run in 'nowhere'"),
        ([], "no run is known here: name one by --run DIR, or a cluster by --address"),
        (["--address", "ftp://x"], "'ftp://x' is not the address of a Ray dashboard"),
        (["--address", "127.0.0.1:9"], "can't reach a Ray dashboard at 'http://127.0.0.1:9'"),
        (["--prometheus", "http://127.0.0.1:9"], "Prometheus at 'http://127.0.0.1:9' doesn't answer"),
    ],
)
def test_mistakes_are_one_sentence(alone, interrupts, monkeypatch, capsys, words, sentence):
    monkeypatch.setattr("cluster.dashboard.command.prometheus_installed", lambda: True)
    assert main(["dashboard", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1


def test_without_prometheus_and_a_run_it_says_what_to_install(alone, interrupts, monkeypatch, capsys):
    monkeypatch.setattr("cluster.dashboard.command.prometheus_installed", lambda: False)
    assert main(["dashboard", "--address", "127.0.0.1:9"]) == 2
    assert "prometheus is not installed: `apt-get install prometheus`, or name a run" in capsys.readouterr().err


def test_port_that_is_taken_is_named(run, page):
    port = urlsplit(page).port
    with pytest.raises(RunError, match=f"port {port} can't be had"):
        PageServer(FileSource([run]), port)


def test_command_serves_a_finished_run_until_it_is_interrupted(run, alone):
    command = [sys.executable, "-m", "cluster.main", "dashboard", "--run", str(run)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        url = re.fullmatch(r"page    (http://127\.0\.0\.1:\d+)/\?run=mine\n", lines[1])
        assert url is not None and "telemetry.jsonl" in lines[0], lines
        with urlopen(f"{url[1]}/data?run=mine") as answer:
            assert json.load(answer)["latest"]["step"] == 19
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed; it is large, so CI has none")
def test_chromium_draws_every_curve(page, tmp_path):
    command = [shutil.which("chromium") or "", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000", f"{page}/?seconds=0"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    with urlopen(f"{page}/data?seconds=0") as answer:
        told = json.load(answer)
    wanted = sum(len(panel["curves"]) for one in told["rows"] for panel in one["panels"])
    drawn = re.findall(r'<path class="curve[^"]*" d="M[\d.]+,[\d.]+', done.stdout)
    assert len(drawn) == wanted > 20
    assert "NaN" not in done.stdout and "Not running: 19 of 30 updates" in done.stdout


def test_line_without_a_place_in_the_telemetry_has_no_curve(run):
    assert FileSource([run]).curves(Line("of nodes", "ray_node_mem_used"), Scope("mine", "policy", *EVER)) == []
