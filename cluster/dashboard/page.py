"""The built-in page: one HTML file without anything from elsewhere, and the small server that hands it its numbers.

The server listens on loopback and only answers browsers that know it under a loopback name, so that no page of another
site can read it. It has nothing to tell but numbers of runs.
"""

import json
import sys
import time
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from cluster.dashboard.diagnosis import diagnose
from cluster.dashboard.panels import ROWS, Panel
from cluster.dashboard.source import Curve, Scope, Source
from dreamer4.errors import RunError

HTML = Path(__file__).with_name("dashboard.html")
PORTS = range(8300, 8320)
CLOSING = 0.05  # seconds between two looks at whether it is to close
NAMES = ("127.0.0.1", "localhost", "[::1]")  # of us; whoever calls us otherwise was sent here by somebody
# The browser may ask nobody but us.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SHORTEST, WHOLE = 60.0, 0.0  # seconds that are shown: at least, and "all"
TILES = (
    "frames_per_s",
    "workers_ready",
    "workers_wanted",
    "workers_pending",
    "workers_lost",
    "learner_starves",
    "workers_idle",
    "step",
    "steps",
    "staleness",
    "cost_per_million_frames",
)


def snapshot(source: Source, run: str | None, stage: str | None, seconds: float) -> dict[str, Any]:
    """All that the page shows.

    Args:
        run, stage: None: the newest.
        seconds: how far back, or `WHOLE`. Of a run that has ended, back from its end.

    Raises:
        RunError: the source doesn't answer.
    """
    runs = source.runs()
    if run is None and runs:
        run, stage = runs[0]
    if stage is None:
        stage = next((s for name, s in runs if name == run), None)
    answer = {"source": source.name, "now": time.time(), "runs": runs, "run": run, "stage": stage}
    if run is None or stage is None:
        return {**answer, **_said({}, 0), "latest": {}, "alerts": source.alerts(), "rows": []}
    first, last = source.span(run, stage)
    start = first if seconds == WHOLE else max(first, last - max(SHORTEST, seconds))
    scope = Scope(run, stage, start, max(last, start + SHORTEST))
    latest: dict[str, float] = {}
    rows = [
        {"title": title, "panels": [_panel(panel, source, scope, latest) for panel in panels]}
        for title, panels in ROWS.items()
    ]
    heard = latest.pop("heard", last)
    return {
        **answer,
        **_said(latest, answer["now"] - heard),
        "start": scope.start,
        "end": scope.end,
        "heard": heard,
        "latest": {key: latest.get(key) for key in TILES},
        "alerts": source.alerts(),
        "rows": [{**row, "panels": [panel for panel in row["panels"] if panel["curves"]]} for row in rows],
    }


def _said(latest: Mapping[str, float], age: float) -> dict[str, Any]:
    return {"diagnosis": diagnose(latest, age)._asdict()}


def _panel(panel: Panel, source: Source, scope: Scope, latest: dict[str, float]) -> dict[str, Any]:
    """A panel's curves, those that there are; notes the last value of each key."""
    curves: list[Curve] = []
    for line in panel.lines:
        found = source.curves(line, scope)
        curves += found
        if line.key and len(found) == 1 and found[0].points:
            when, value = found[0].points[-1]
            if line.shape == "itself":
                latest[line.key] = value
            latest["heard"] = max(latest.get("heard", 0), when)
    drawn = [{"name": curve.name, "points": curve.points} for curve in curves if curve.points]
    return {"title": panel.title, "unit": panel.unit, "text": panel.text, "most": panel.most, "curves": drawn}


class PageServer:
    """Serves the page for the length of a `with` block.

    Args:
        port: None: the first free one from 8300 on.

    Raises:
        RunError: it is taken.
    """

    def __init__(self, source: Source, port: int | None = None):
        handler = partial(_Handler, source)
        self.server = _listen(handler, PORTS if port is None else [port])
        self.thread = Thread(target=self.server.serve_forever, args=(CLOSING,), name="dashboard", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()


def _listen(handler: Any, ports: range | list[int]) -> ThreadingHTTPServer:
    for port in ports:
        try:
            server = _Server(("127.0.0.1", port), handler)
        except (OSError, OverflowError):
            continue
        return server
    if len(ports) == 1:
        raise RunError(f"port {ports[0]} can't be had: give another --port, or none for the first free one")
    raise RunError(f"ports {ports[0]} to {ports[-1]} are all in use: give another --port")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has left before its answer came is nothing to tell."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "dreamer4", ""

    def __init__(self, source: Source, *arguments: Any):
        self.source = source
        super().__init__(*arguments)

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in NAMES:
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"this page is only served on loopback\n")
            return
        parts = urlsplit(self.path)
        if parts.path == "/":
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", HTML.read_bytes())
        elif parts.path == "/data":
            self._data(parse_qs(parts.query))
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"there is / and /data\n")

    def _data(self, asked: dict[str, list[str]]) -> None:
        run, stage = (asked.get(name, [None])[0] for name in ("run", "stage"))
        try:
            seconds = float(asked.get("seconds", ["0"])[0])
            status, told = HTTPStatus.OK, snapshot(self.source, run, stage, seconds)
        except ValueError:
            status, told = HTTPStatus.BAD_REQUEST, {"error": "seconds is a number"}
        except RunError as error:
            status, told = HTTPStatus.BAD_GATEWAY, {"error": str(error)}
        self._answer(status, "application/json", json.dumps(told).encode())

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """The terminal is for what the user asked for."""
