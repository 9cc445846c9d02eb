"""A run directory: its config, its lock, and where everything in it lies.

```
config.json    the resolved configuration        finished/STAGE.json   what a finished stage reported
data/          recorded episodes                 metrics.jsonl         one line per update (cluster.telemetry)
latents/       the same, encoded                 STAGE/                checkpoints of a stage
latents-N/     those of the N-th dataset of `data.mixture`
```
"""

import fcntl
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from cluster.config import CONTROLS, RunConfig
from cluster.settings import differences, from_json, to_json
from dreamer4.checkpoint import Checkpoints
from dreamer4.errors import ConfigError, RunError
from dreamer4.files import ensure_writable, read_json, write_json

FREE = ("controls", "parallel", "resources", "evaluation", "logging")  # what may change from start to start


class Run:
    """One experiment on disk. `open` drives it, one process at a time; `attach` reads it, from anywhere."""

    def __init__(self, path: Path, config: RunConfig, lock: IO[str] | None = None):
        self.path, self.config, self._lock = path, config, lock

    @classmethod
    def open(cls, path: str | Path, config: RunConfig | None = None) -> Self:
        """Creates a run, or reopens it to go on. Holds the run's lock until `close` or the end of the process.

        Args:
            config: a resolved configuration; None takes that of the existing run.

        Raises:
            RunError: the directory can't be written, holds no run, holds one with another config (the keys are
                listed), or is in use by another process (which is named).
        """
        path = _local(path)
        if config is None and not saved(path):
            raise RunError(f"there is no run in '{path}': start one with `dreamer4 quickstart --run {path}`")
        ensure_writable(path)
        lock = _take_lock(path)
        try:
            if saved(path):
                config = _continued(path, config)
            assert config is not None
            write_json(path / "config.json", to_json(config))
        except BaseException:
            lock.close()
            raise
        return cls(path, config, lock)

    @classmethod
    def attach(cls, path: str | Path) -> Self:
        """A run that another process drives, as its workers see it.

        Raises:
            RunError: there is no run.
        """
        path = _local(path)
        try:
            return cls(path, read_config(path))
        except RunError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                raise RunError(
                    f"there is no run in '{path}': give a run directory, such as `dreamer4 runs --root DIR` lists"
                ) from error
            raise

    def close(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def data(self) -> str | Path:
        """Where the recordings are: in the run, unless they were made elsewhere."""
        return self.config.data.source or self.path / "data"

    @property
    def latents(self) -> Path:
        return self.path / "latents"

    @property
    def mixture(self) -> list[tuple[str, Path]]:
        """Further datasets that the world model learns from, and where their latents are in the run."""
        return [(place, self.path / f"latents-{number}") for number, place in enumerate(self.config.data.mixture, 1)]

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def identity(self) -> dict[str, Any]:
        """The part of the config that checkpoints must agree with, as JSON."""
        return {name: section for name, section in to_json(self.config).items() if name not in FREE}

    def checkpoints(self, stage: str) -> Checkpoints:
        """Those of a stage. Whoever wants one that isn't there is told which command makes it."""
        hint = f"`dreamer4 train {stage} --run {self.path}` makes one"
        if stage in CONTROLS:
            hint = f"`dreamer4 quickstart --run {self.path}` makes one, if the setting `controls` has '{stage}' in it"
        return Checkpoints(self.path / stage, hint=hint)

    def finish(self, stage: str, record: dict[str, Any]) -> None:
        """Notes that a stage is complete, and what it reported."""
        write_json(self.path / "finished" / f"{stage}.json", record)

    def finished(self, stage: str) -> dict[str, Any] | None:
        """What a complete stage reported; None where it isn't complete."""
        path = self.path / "finished" / f"{stage}.json"
        return read_json(path) if path.exists() else None


def saved(path: str | Path) -> bool:
    """Whether there is a run."""
    return (Path(path) / "config.json").is_file()


def read_config(path: str | Path) -> RunConfig:
    """The configuration of a run on disk.

    Raises:
        RunError: there is none, or it was written by a version with other keys.
    """
    file = Path(path) / "config.json"
    try:
        return from_json(RunConfig, read_json(file))
    except ConfigError as error:
        raise RunError(f"'{file}' can't be used: {error}") from error


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise RunError(f"run directories are local folders, got '{path}'")
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not Path(path).is_absolute():
        raise RunError(
            f"run directory '{path}' is relative, and a Ray job's working directory is thrown away at its end: give an "
            "absolute path on a disk that the nodes share, or use `dreamer4 submit`, which takes paths from where it is"
        )
    return Path(path).absolute()


def _take_lock(path: Path) -> IO[str]:
    """An open file with an advisory lock, which the kernel takes back whatever becomes of this process."""
    file = open(path / ".lock", "a+")  # noqa: SIM115 - held until `Run.close`
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise RunError(f"run '{path}' is in use by {holder}: wait for it, or stop it first") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _continued(path: Path, config: RunConfig | None) -> RunConfig:
    """The config that an existing run goes on with."""
    before = read_config(path)
    if config is None:
        return before
    clashes = [d for d in differences(before, config) if d.key.partition(".")[0] not in FREE]
    if clashes:
        listed = "; ".join(f"{d.key} is {d.first!r} there and {d.second!r} here" for d in clashes)
        raise RunError(f"run '{path}' has another config: {listed}: give another --run, or the same config")
    return config
