"""What a run tells while it runs: metrics.jsonl always, W&B when asked, one line of progress."""

import json
import math
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from cluster.run import Run
from dreamer4.errors import RunError
from dreamer4.files import append_line, write_atomic


def read_metrics(path: Path, stage: str | None = None) -> list[dict[str, Any]]:
    """Rows of a metrics file, in order, of one stage or of all; a last line that was cut by a crash is left out.

    Raises:
        RunError: the file is damaged elsewhere; file and line are named.
    """
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise RunError(f"line {number} of '{path}' is not JSON: remove that line") from error
    return [row for row in rows if stage is None or row["stage"] == stage]


class MetricsWriter:
    """Appends `{"stage", "step", "time", ...metrics}` to a run's metrics.jsonl, and to W&B where the run asks for it.

    `step` is the number of the update, from 0; `time` is in seconds since 1970. What is not a finite number becomes
    null, because JSON has none.

    Args:
        wandb: false where another process of the run tells W&B.
    """

    def __init__(self, run: Run, wandb: bool = True):
        self.path = run.metrics_path
        self._repair()
        self.sink = WandbSink(run) if wandb and run.config.logging.wandb else None

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Raises `RunError` if the file can't be written."""
        plain = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        append_line(self.path, json.dumps({"stage": stage, "step": step, "time": round(time.time(), 3), **plain}))
        if self.sink is not None:
            self.sink.log(stage, step, metrics)

    def truncate_after(self, stage: str, step: int) -> None:
        """Forgets a stage's updates number `step` and later: a resumed run does them again."""
        rows = read_metrics(self.path)
        kept = [row for row in rows if row["stage"] != stage or row["step"] < step]
        if len(kept) < len(rows):
            write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def _repair(self) -> None:
        """Cuts off half a line that a killed writer left."""
        if not self.path.exists():
            return
        whole = self.path.read_bytes().rpartition(b"\n")
        if whole[2]:
            write_atomic(self.path, whole[0] + whole[1])


class WandbSink:
    """The same metrics in W&B, by default offline: nothing leaves the machine until `wandb sync` is called.

    All sinks of a process write to one W&B run, and every start of a run directory continues it.

    Raises:
        RunError: wandb is not installed.
    """

    def __init__(self, run: Run):
        try:
            import wandb
        except ImportError:
            raise RunError("logging.wandb needs the wandb package: pip install 'dreamer4-ray[wandb]'") from None
        logging = run.config.logging
        self.stages: set[str] = set()
        self.wandb_run = wandb.init(
            project=logging.project,
            mode=logging.mode,
            dir=run.path,
            id=_identifier(run),
            name=run.path.name,
            resume="allow" if logging.mode == "online" else None,
            reinit="return_previous",
            config=run.identity(),
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Every stage has an x-axis of its own."""
        if stage not in self.stages:
            self.wandb_run.define_metric(f"{stage}/step")
            self.wandb_run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self.stages.add(stage)
        self.wandb_run.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in metrics.items()}})

    def finish(self) -> None:
        """Flushes; W&B does so by itself when the process ends."""
        self.wandb_run.finish()


def _identifier(run: Run) -> str:
    """A W&B id that stays with the directory; kept in it, so that a copied name doesn't join two runs."""
    path = run.path / "wandb-id"
    if not path.exists():
        write_atomic(path, secrets.token_hex(8).encode())
    return path.read_text()


class Progress:
    """One line: how far, how fast, how long still. A terminal's line is rewritten, a file gets one now and then.

    Args:
        total: steps of the whole work.
        done: steps that an earlier start has done; they don't count for the rate.
        stream: by default the standard error.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        name: str,
        total: int,
        done: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.name, self.total, self.first, self.done = name, total, done, done
        self.stream = sys.stderr if stream is None else stream
        self.clock, self.started = clock, clock()
        self.live = self.stream.isatty()
        self.pause = 0.1 if self.live else 10.0  # seconds between lines
        self.shown = self.started if not self.live else -math.inf

    def update(self, done: int, metrics: Mapping[str, float] | None = None) -> None:
        """`done` steps are complete; shows the first metrics beside them."""
        self.done = done
        now = self.clock()
        if now - self.shown >= self.pause:
            self.shown = now
            self._show(self.line(now, metrics or {}), "" if self.live else "\n")

    def line(self, now: float, metrics: Mapping[str, float]) -> str:
        spent = now - self.started
        rate = (self.done - self.first) / spent if spent > 0 else 0.0
        left = f"{duration((self.total - self.done) / rate)} left" if rate > 0 else "starting"
        share = 100 * self.done / max(1, self.total)
        parts = [f"{self.name} {self.done}/{self.total}", f"{share:.0f} %", f"{rate:.3g}/s", left]
        parts += [f"{name} {value:.4g}" for name, value in list(metrics.items())[:2]]
        return "  ".join(parts)

    def close(self) -> None:
        """Ends the line with what was done in all."""
        spent = duration(self.clock() - self.started)
        self._show(f"{self.name} {self.done}/{self.total}  in {spent}", "\n")

    def _show(self, line: str, end: str) -> None:
        start, erase = ("\r", "\x1b[K") if self.live else ("", "")
        print(f"{start}{line}{erase}", end=end, file=self.stream, flush=True)


def duration(seconds: float) -> str:
    """`1 h 02 min`, `1 min 05 s`, `7 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
