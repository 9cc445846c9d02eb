"""Where the page's numbers come from: a Prometheus, or the telemetry that runs keep in their own directories."""

import http.client
import json
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

from cluster.dashboard.panels import Line
from cluster.policy.telemetry import FILE, TAGS, exported
from dreamer4.errors import RunError

MOST_POINTS = 240  # of a line
PATIENCE = 5.0  # seconds for an answer of Prometheus

Point = tuple[float, float]  # seconds since 1970, value


@dataclass(frozen=True)
class Curve:
    """A line as it is drawn, oldest point first."""

    name: str
    points: list[Point]


@dataclass(frozen=True)
class Scope:
    """What is looked at: a stage of a run, and which seconds since 1970."""

    run: str
    stage: str
    start: float
    end: float


class Source(Protocol):
    name: str  # for people
    live: bool  # whether `now` is the present even where nothing is told any more

    def runs(self) -> list[tuple[str, str]]:
        """(run, stage), the one that was told of last in front."""
        ...

    def span(self, run: str, stage: str) -> tuple[float, float]:
        """First and last moment that is known of a stage."""
        ...

    def curves(self, line: Line, scope: Scope) -> list[Curve]:
        """A line of a panel; none where this source doesn't know it."""
        ...

    def alerts(self) -> list[dict[str, str]]:
        """`name`, `severity`, `summary` of what fires."""
        ...


class PrometheusSource:
    """A Prometheus that scrapes Ray.

    Raises:
        RunError: from every method, if it doesn't answer or refuses the query.
    """

    live = True

    def __init__(self, url: str):
        self.url, self.name = url.rstrip("/"), f"Prometheus at {url}"

    def runs(self) -> list[tuple[str, str]]:
        """Of the last day."""
        query = f"sort_desc(max by (run, stage) (max_over_time(timestamp({exported('step')})[1d:15s])))"
        found = self._get("query", query=query)["result"]
        return [(entry["metric"]["run"], entry["metric"]["stage"]) for entry in found]

    def span(self, run: str, stage: str) -> tuple[float, float]:
        selected = f"{exported('step')}{{run={_quoted(run)},stage={_quoted(stage)}}}"
        first = self._get("query", query=f"min(min_over_time(timestamp({selected})[1d:15s]))")["result"]
        now = time.time()
        return (float(first[0]["value"][1]) if first else now), now

    def curves(self, line: Line, scope: Scope) -> list[Curve]:
        step = max(2.0, (scope.end - scope.start) / MOST_POINTS)
        query = scoped(line.query, scope.run, scope.stage)
        data = self._get("query_range", query=query, start=scope.start, end=scope.end, step=step)
        return [Curve(_legend(line.name, one["metric"]), _finite(one["values"])) for one in data["result"]]

    def alerts(self) -> list[dict[str, str]]:
        firing = [alert for alert in self._get("alerts")["alerts"] if alert["state"] == "firing"]
        return [
            {
                "name": alert["labels"]["alertname"],
                "severity": alert["labels"].get("severity", ""),
                "summary": alert["annotations"].get("summary", ""),
            }
            for alert in firing
        ]

    def value(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of everything that a query gives now."""
        return [(entry["metric"], float(entry["value"][1])) for entry in self._get("query", query=query)["result"]]

    def _get(self, what: str, **parameters: Any) -> Any:
        body = urlencode(parameters).encode() if parameters else None
        try:
            with urlopen(f"{self.url}/api/v1/{what}", body, timeout=PATIENCE) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")[:300]
            raise RunError(f"Prometheus at '{self.url}' refuses {parameters or what}: {said}") from error
        except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
            why = getattr(error, "reason", error)
            raise RunError(f"Prometheus at '{self.url}' doesn't answer ({why}): is it running?") from error


class FileSource:
    """The telemetry of runs on a disk, also of those that have ended."""

    live = False

    def __init__(self, runs: Sequence[Path]):
        names = Counter(path.name for path in runs)
        self.logs = {path.name if names[path.name] == 1 else str(path): Log(path / FILE) for path in runs}
        listed = ", ".join(str(path) for path in runs[:3]) + (" and others" if len(runs) > 3 else "")
        self.name = f"telemetry.jsonl of {listed}"

    def runs(self) -> list[tuple[str, str]]:
        last = {(name, row["stage"]): row["time"] for name in self.logs for row in self._rows(name)}
        return sorted(last, key=lambda pair: -last[pair])

    def span(self, run: str, stage: str) -> tuple[float, float]:
        times = [row["time"] for row in self._rows(run, stage)]
        return (times[0], times[-1]) if times else (time.time(), time.time())

    def curves(self, line: Line, scope: Scope) -> list[Curve]:
        if line.key is None:
            return []
        series: dict[str, list[Point]] = {}
        for row in self._rows(scope.run, scope.stage):
            if scope.start <= row["time"] <= scope.end:
                for name, value in _numbers(row, line):
                    series.setdefault(name, []).append((row["time"], value))
        if line.shape == "rate":
            series = {name: _growth(points) for name, points in series.items()}
        return [Curve(name, _thinned(points)) for name, points in series.items()]

    def alerts(self) -> list[dict[str, str]]:
        return []

    def _rows(self, run: str, stage: str | None = None) -> list[dict[str, Any]]:
        rows = self.logs[run].rows() if run in self.logs else []
        return [row for row in rows if stage is None or row["stage"] == stage]


class Log:
    """A file of JSON lines that grows: only what is new is read, which matters after a week of them."""

    def __init__(self, path: Path):
        self.path, self.read, self.known = path, 0, []
        self.lock = Lock()

    def rows(self) -> list[dict[str, Any]]:
        """All of them; a line that a killed writer left half is skipped. No file is no rows."""
        with self.lock:
            if self.path.exists():
                with open(self.path, "rb") as file:
                    if self.path.stat().st_size < self.read:  # another file
                        self.read, self.known = 0, []
                    file.seek(self.read)
                    whole, _, _ = file.read().rpartition(b"\n")
                if whole:
                    self.read += len(whole) + 1
                    for line in whole.split(b"\n"):
                        with suppress(ValueError):
                            self.known.append(json.loads(line))
            return list(self.known)


def scoped(query: str, run: str, stage: str) -> str:
    """A panel's query for one stage of one run, in place of Grafana's variables."""
    return query.replace('run=~"$run"', f"run={_quoted(run)}").replace('stage=~"$stage"', f"stage={_quoted(stage)}")


def label_of(line: Line) -> str | None:
    """The label that tells the lines of one query apart."""
    found = re.search(r"\{\{(\w+)\}\}", line.name)
    return found[1] if found and found[1] not in TAGS else None


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # PromQL escapes like JSON


def _legend(name: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), name).strip()


def _finite(values: Sequence[tuple[float, str]]) -> list[Point]:
    return [(when, float(value)) for when, value in values if math.isfinite(float(value))]


def _numbers(row: Mapping[str, Any], line: Line) -> Iterator[tuple[str, float]]:
    """(name of a curve, value) of a row, which may be of a version that didn't know the key."""
    assert line.key is not None
    key, _, part = line.key.partition(".")
    value = row.get(key)
    if part:
        value = (value or {}).get(part)
    label = label_of(line)
    values = {line.name: value}
    if label:
        values = {_legend(line.name, {label: name}): number for name, number in (value or {}).items()}
    for name, number in values.items():
        if isinstance(number, int | float) and math.isfinite(number):
            yield name, 1 - number if line.shape == "rest" else number


def _growth(points: Sequence[Point]) -> list[Point]:
    """Per second; what starts again at 0 has not shrunk."""
    return [(t, (v - u if v >= u else v) / (t - s)) for (s, u), (t, v) in pairwise(points) if t > s]


def _thinned(points: list[Point]) -> list[Point]:
    """Means of neighbours, so that no line has more than `MOST_POINTS`."""
    size = math.ceil(len(points) / MOST_POINTS)
    if size <= 1:
        return points
    parts = [points[place : place + size] for place in range(0, len(points), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]
