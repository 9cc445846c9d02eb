"""Wall-clock and CPU seconds of every stage, over all starts of a run: kept in `timing.json`."""

import time
from types import TracebackType
from typing import Self

from cluster.run import Run
from dreamer4.files import read_json, write_json


class Clock:
    """Times one stage. What was spent before an interruption counts: it was paid for."""

    def __init__(self, run: Run, stage: str):
        self.path, self.stage = run.path / "timing.json", stage
        times = read_json(self.path) if self.path.exists() else {}
        spent = times.get(stage, {})
        self.cpu, self.wall_before = spent.get("cpu_seconds", 0.0), spent.get("wall_seconds", 0.0)

    def __enter__(self) -> Self:
        self.started = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.write()

    def add_cpu(self, seconds: float) -> None:
        """Adds what a process of the stage has used."""
        self.cpu += seconds
        self.write()

    def record(self) -> dict[str, float]:
        wall = self.wall_before + time.monotonic() - self.started
        return {"cpu_seconds": round(self.cpu, 2), "wall_seconds": round(wall, 2)}

    def write(self) -> None:
        times = read_json(self.path) if self.path.exists() else {}
        write_json(self.path, {**times, self.stage: self.record()})
