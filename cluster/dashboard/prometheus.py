"""A Prometheus, and a Grafana where there is one, that live as long as the dashboard; both on loopback."""

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import yaml

from cluster.local.processes import kill, launch
from cluster.local.ray_start import REPOSITORY, free_ports
from dreamer4.errors import RunError

MONITORING = REPOSITORY / "deploy" / "monitoring"
SCRAPE_SECONDS = 2
START_SECONDS = 60.0
MISSING = "prometheus is not installed: `apt-get install prometheus`"
GRAFANAS = ("grafana-server", "grafana")  # the second one since version 9
GRAFANA_HOME = "/usr/share/grafana"


def prometheus_installed() -> bool:
    return shutil.which("prometheus") is not None


def check_ray(url: str, token: Path | None) -> str:
    """The address of a Ray dashboard that tells where its nodes' metrics are.

    Raises:
        RunError: nobody answers there, or it wants another token.
    """
    url = url.rstrip("/") if "://" in url else f"http://{url}".rstrip("/")
    if urlsplit(url).scheme not in ("http", "https"):
        raise RunError(f"'{url}' is not the address of a Ray dashboard: give one such as http://127.0.0.1:8265")
    headers = {}
    if token is not None:
        try:
            headers["Authorization"] = f"Bearer {token.read_text().strip()}"
        except OSError as error:
            raise RunError(f"there is no token in '{token}': set RAY_AUTH_TOKEN_PATH to the token's file") from error
    try:
        urlopen(Request(f"{url}/api/prometheus/sd", headers=headers), timeout=10).close()
    except HTTPError as error:
        error.close()
        if error.code in (401, 403):
            raise RunError(
                f"the cluster at '{url}' wants its token: set RAY_AUTH_TOKEN_PATH to the token's file"
            ) from error
        raise RunError(f"'{url}' answers with status {error.code}: is it the dashboard of a recent Ray?") from error
    except OSError as error:
        raise RunError(
            f"can't reach a Ray dashboard at '{url}': start the cluster with its dashboard, or forward its port to "
            "this machine"
        ) from error
    return url


class Prometheus:
    """Scrapes the nodes that a Ray dashboard names.

    Args:
        folder: for its data and log; its own.
        ray: from `check_ray`.

    Raises:
        RunError: it is not installed, or doesn't start.
    """

    def __init__(self, folder: Path, ray: str, token: Path | None):
        program = shutil.which("prometheus")
        if program is None:
            raise RunError(MISSING)
        folder.mkdir(mode=0o700)
        config, log = folder / "prometheus.yml", folder / "prometheus.log"
        config.write_text(yaml.safe_dump(configuration(ray, token), sort_keys=False))
        port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{port}"
        command = [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        self.process = launch(command, dict(os.environ), log)
        _wait(self.process, f"{self.url}/-/ready", "prometheus", log)

    def close(self) -> None:
        kill([self.process])


def configuration(ray: str, token: Path | None) -> dict[str, object]:
    """Of a Prometheus beside the Ray dashboard at `ray`; with our alerts where this is our repository."""
    discovery: dict[str, object] = {"url": f"{ray}/api/prometheus/sd", "refresh_interval": "2s"}
    if token is not None:
        discovery["authorization"] = {"type": "Bearer", "credentials_file": str(token.absolute())}
    rules = MONITORING / "rules.yml"
    return {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": "5s"},
        "rule_files": [str(rules)] if rules.exists() else [],
        "scrape_configs": [{"job_name": "ray", "http_sd_configs": [discovery]}],
    }


class Grafana:
    """A Grafana with the dashboard "Imagination"; everybody on this machine may look at it.

    Raises:
        RunError: it doesn't start.
    """

    def __init__(self, folder: Path, program: Sequence[str], prometheus: str):
        port, log = free_ports(1)[0], folder / "grafana.log"
        self.url = f"http://127.0.0.1:{port}/d/dreamer4-imagination"
        settings = {
            "GF_SERVER_HTTP_ADDR": "127.0.0.1",
            "GF_SERVER_HTTP_PORT": str(port),
            "GF_PATHS_DATA": str(folder / "grafana"),
            "GF_PATHS_LOGS": str(folder / "grafana" / "logs"),
            "GF_PATHS_PROVISIONING": str(MONITORING / "grafana" / "provisioning"),
            "GF_AUTH_ANONYMOUS_ENABLED": "true",
            "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
            "GF_AUTH_DISABLE_LOGIN_FORM": "true",  # there is a user admin with a password that everybody knows
            "GF_AUTH_BASIC_ENABLED": "false",
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
            "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
            "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
            "DREAMER4_PROMETHEUS_URL": prometheus,
            "DREAMER4_DASHBOARDS": str(MONITORING / "grafana" / "dashboards"),
        }
        self.process = launch([*program, "--homepath", GRAFANA_HOME], {**os.environ, **settings}, log)
        _wait(self.process, f"http://127.0.0.1:{port}/api/health", "grafana", log)

    def close(self) -> None:
        kill([self.process])


def grafana_program() -> list[str] | None:
    """How Grafana is started here; None where it is not installed, or our dashboard isn't at hand."""
    found = next((path for name in GRAFANAS if (path := shutil.which(name))), None)
    if found is None or not (MONITORING / "grafana").is_dir():
        return None
    return [found] if found.endswith("-server") else [found, "server"]


def _wait(process: subprocess.Popen[bytes], url: str, name: str, log: Path) -> None:
    """Until it answers. Raises `RunError`, with the end of its log, if it doesn't."""
    deadline = time.monotonic() + START_SECONDS
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            kill([process])
            end = " | ".join(log.read_text(errors="replace").strip().splitlines()[-2:])
            raise RunError(f"{name} did not start: {end or 'it said nothing'}")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True
