import io
import json
import math
import sys

import pytest
import wandb

from cluster.presets import smoke
from cluster.run import Run
from cluster.settings import override
from cluster.telemetry import MetricsWriter, Progress, duration, read_metrics
from dreamer4.errors import RunError


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path, smoke())


def steps(run, stage=None):
    return [(row["stage"], row["step"]) for row in read_metrics(run.metrics_path, stage)]


def test_rows_come_back_in_order(run):
    writer = MetricsWriter(run)
    writer.write("tokenizer", 0, {"mse": 0.5})
    writer.write("dynamics", 0, {"shortcut": 0.25, "lr": 1e-3})
    first, second = read_metrics(run.metrics_path)
    assert first.keys() == {"stage", "step", "time", "mse"}
    assert (second["stage"], second["step"], second["shortcut"], second["lr"]) == ("dynamics", 0, 0.25, 1e-3)
    assert first["time"] <= second["time"]
    assert steps(run, "tokenizer") == [("tokenizer", 0)]


def test_no_file_is_no_rows(run):
    assert read_metrics(run.metrics_path) == []


def test_line_cut_by_a_crash_is_left_out_and_repaired(run):
    writer = MetricsWriter(run)
    for step in range(3):
        writer.write("agent", step, {"policy": 1.0})
    whole = run.metrics_path.read_bytes()
    for cut in (1, 10, len(whole.splitlines()[-1])):
        run.metrics_path.write_bytes(whole[:-cut])
        assert steps(run) == [("agent", 0), ("agent", 1)]
        MetricsWriter(run).write("agent", 2, {"policy": 2.0})
        assert steps(run) == [("agent", 0), ("agent", 1), ("agent", 2)]
        assert len(run.metrics_path.read_bytes().splitlines()) == 3


def test_damage_elsewhere_is_named(run):
    run.metrics_path.write_text('{"stage": "a", "step": 0}\n{"sta\n{"stage": "a", "step": 1}\n')
    with pytest.raises(RunError, match=r"line 2 of '.*metrics\.jsonl'"):
        read_metrics(run.metrics_path)


def test_resumed_stage_has_no_step_twice(run):
    writer = MetricsWriter(run)
    for stage in ("tokenizer", "dynamics"):
        for step in range(4):
            writer.write(stage, step, {"loss": 1.0})
    writer = MetricsWriter(run)
    writer.truncate_after("dynamics", 2)
    assert steps(run) == [("tokenizer", step) for step in range(4)] + [("dynamics", 0), ("dynamics", 1)]
    writer.write("dynamics", 2, {"loss": 2.0})
    assert steps(run, "dynamics") == [("dynamics", 0), ("dynamics", 1), ("dynamics", 2)]


def test_nothing_to_forget_leaves_the_file_alone(run):
    writer = MetricsWriter(run)
    writer.truncate_after("agent", 0)
    assert not run.metrics_path.exists()
    writer.write("agent", 0, {"policy": 1.0})
    before = run.metrics_path.stat()
    writer.truncate_after("agent", 1)
    after = run.metrics_path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_numbers_that_json_lacks_become_null(run):
    MetricsWriter(run).write("agent", 0, {"psnr": math.inf, "loss": math.nan})
    line = run.metrics_path.read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name))["psnr"] is None


@pytest.fixture
def wandb_folders(tmp_path, monkeypatch):
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_wandb_offline_gets_the_same_rows(tmp_path, wandb_folders):
    """A real offline run; nothing leaves the machine."""
    run = Run(tmp_path, override(smoke(), ["logging.wandb=true"]))
    writer, same = MetricsWriter(run), MetricsWriter(run)
    writer.write("agent", 0, {"policy": 0.123456})
    same.write("agent", 1, {"policy": 0.5})
    assert same.sink is not None and writer.sink is not None
    assert same.sink.wandb_run is writer.sink.wandb_run
    assert dict(writer.sink.wandb_run.summary)["agent/policy"] == 0.5
    writer.sink.finish()
    wandb.teardown()  # waits for the file
    (record,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = record.read_bytes()
    assert b"agent/policy" in content and b"0.123456" in content
    assert steps(run) == [("agent", 0), ("agent", 1)]


def test_wandb_run_keeps_its_identity(tmp_path, wandb_folders):
    run = Run(tmp_path, override(smoke(), ["logging.wandb=true"]))
    identities = []
    for _ in range(2):
        sink = MetricsWriter(run).sink
        assert sink is not None
        identities.append(sink.wandb_run.id)
        sink.finish()
    assert identities[0] == identities[1]


def test_missing_wandb_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    MetricsWriter(run)
    with pytest.raises(RunError, match=r"pip install 'dreamer4-ray\[wandb\]'"):
        MetricsWriter(Run(run.path, override(smoke(), ["logging.wandb=true"])))


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_tells_rate_and_time_left():
    clock, stream = Clock(), Terminal()
    progress = Progress("dynamics", 100, stream=stream, clock=clock)
    clock.now += 10
    progress.update(20, {"shortcut": 0.125, "lr": 0.001, "third": 3.0})
    assert stream.getvalue() == "\rdynamics 20/100  20 %  2/s  40 s left  shortcut 0.125  lr 0.001\x1b[K"
    clock.now += 40
    progress.update(100)
    progress.close()
    assert stream.getvalue().endswith("\rdynamics 100/100  in 50 s\x1b[K\n")
    assert stream.getvalue().count("\n") == 1


def test_progress_of_a_resumed_stage_counts_its_own_steps_only():
    clock, stream = Clock(), Terminal()
    progress = Progress("agent", 100, done=90, stream=stream, clock=clock)
    clock.now += 1
    progress.update(92)
    assert "92/100  92 %  2/s  4 s left" in stream.getvalue()


def test_progress_in_a_file_is_a_line_now_and_then():
    clock, stream = Clock(), io.StringIO()
    progress = Progress("agent", 1000, stream=stream, clock=clock)
    for step in range(1, 501):
        clock.now += 0.1
        progress.update(step, {"policy": 1.0})
    progress.close()
    lines = stream.getvalue().splitlines()
    assert 4 <= len(lines) <= 6
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()
    assert lines[-1] == "agent 500/1000  in 50 s"


def test_progress_of_nothing_to_do_is_calm():
    clock, stream = Clock(), Terminal()
    progress = Progress("empty", 0, stream=stream, clock=clock)
    progress.update(0)
    progress.close()
    assert "empty 0/0" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (65, "1 min 05 s"), (3720, "1 h 02 min")]
)
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text
