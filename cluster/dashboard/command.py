"""`dreamer4 dashboard`: how fast stage 4 is and why, on a page in the browser."""

import os
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from cluster.dashboard.page import PageServer
from cluster.dashboard.prometheus import MISSING, Grafana, Prometheus, check_ray, grafana_program, prometheus_installed
from cluster.dashboard.source import FileSource, PrometheusSource, Source
from cluster.registry.registry import list_runs
from cluster.run import saved
from cluster.session import temporary_folder
from cluster.submit import ADDRESSES
from dreamer4.errors import RunError


@contextmanager
def live_source(folder: Path, ray: str, token: Path | None) -> Iterator[tuple[PrometheusSource, str | None]]:
    """A Prometheus that scrapes a Ray, for the length of a `with` block; and Grafana's address, where there is one.

    Raises:
        RunError: Ray doesn't answer, or Prometheus is not installed or doesn't start.
    """
    with ExitStack() as stack:
        prometheus = stack.enter_context(closing(Prometheus(folder / "prometheus", check_ray(ray, token), token)))
        program = grafana_program()
        grafana = stack.enter_context(closing(Grafana(folder, program, prometheus.url))) if program else None
        yield PrometheusSource(prometheus.url), grafana.url if grafana else None


def file_source(run: Path | None) -> FileSource:
    """The telemetry of one run, or of all that the registry knows.

    Raises:
        RunError: there is none.
    """
    if run is not None:
        if not saved(run):
            raise RunError(f"there is no run in '{run}': name its directory by --run")
        return FileSource([run.absolute()])
    try:
        runs = [Path(entry["run"]) for entry in list_runs()]
    except RunError:
        runs = []
    if not runs:
        raise RunError("no run is known here: name one by --run DIR, or a cluster by --address http://HOST:8265")
    return FileSource(runs)


def token_path() -> Path | None:
    """The file with the token of the Ray that the environment means."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(path) if path else None


@contextmanager
def source_of(run: Path | None, address: str | None, prometheus: str | None) -> Iterator[tuple[Source, str]]:
    """Where the numbers come from, and what to say about it.

    A Prometheus that is named comes first, then one that is started beside the cluster at `address`; without either, or
    where Prometheus is not installed, the telemetry in the run directories.
    """
    if prometheus is not None:
        source = PrometheusSource(prometheus)
        source.runs()  # answers, or says why not
        yield source, source.name
    elif address is not None and prometheus_installed():
        with temporary_folder() as folder, live_source(folder, address, token_path()) as (source, grafana):
            yield source, source.name + (f", Grafana at {grafana}" if grafana else "")
    elif address is not None:
        try:
            source = file_source(run)
        except RunError as error:
            raise RunError(f"{MISSING}, or name a run by --run DIR: its telemetry is shown without it") from error
        yield source, f"{source.name}, as prometheus is not installed"
    else:
        source = file_source(run)
        yield source, source.name


def dashboard(run: Path | None, address: str | None, prometheus: str | None, port: int | None, browse: bool) -> None:
    """Serves the page until it is interrupted.

    Args:
        run: None: all that are known.
        address: of Ray's dashboard; None: as the environment says, as for `dreamer4 submit`, if it does.
        prometheus: address of one that scrapes the cluster already.

    Raises:
        RunError: there is nothing to show, something can't be reached or started, or the port is taken.
    """
    if address is None and run is None:
        address = next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), None)
    with source_of(run, address, prometheus) as (source, said), PageServer(source, port) as server:
        url = server.url + (f"/?run={run.absolute().name}" if run is not None else "")
        print(f"from    {said}\npage    {url}\n        an interrupt ends it", flush=True)
        if browse:
            webbrowser.open(url)
        threading.Event().wait()
