"""`dreamer4 submit`: a command of ours as a job on a running cluster, like `ray job submit --working-dir .`.

What is shipped is this repository without what .gitignore and .rayignore name; where dreamer4 is installed as a package
instead, the cluster has to have it as well. Nothing is downloaded there. The job runs on the cluster's head; the run
directory has to be on a disk that all nodes share.
"""

import asyncio
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster import paths
from dreamer4.errors import ConfigError, RunError

ROOT = Path(__file__).resolve().parents[1]
ADDRESSES = ("RAY_DASHBOARD_ADDRESS", "RAY_API_SERVER_ADDRESS")
# Options of our commands that name a file or folder; what takes URLs as well is among them.
PATHS = ("--run", "--json", "--root", "--data", "--source", "--out", "--like", "--exclude", "--sheet", "--profile")
PATHS += ("--to", "--from")
# Loggers that tell of every file that isn't shipped, and when a connection closes.
TALKATIVE = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
STOPPED = 143  # the exit status of a job that was stopped, as if by SIGTERM
PATIENCE = 60.0  # seconds without an answer after which a cluster counts as lost

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "PIP_NO_INDEX": "1",
    "UV_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "OMP_NUM_THREADS": "1",  # of the job itself; our actors are told theirs
    "RAY_JOB_STOP_WAIT_TIME_S": "45",  # Ray's 3 s are too few for a last checkpoint
}


class Client:
    """A connection to a cluster's dashboard.

    Args:
        url: such as http://127.0.0.1:8265.

    Raises:
        RunError: nobody answers there, or it isn't a Ray; or the token is missing or wrong.
    """

    def __init__(self, url: str):
        self.url = url if "://" in url else f"http://{url}"
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RunError(f"'{url}' is not the address of a dashboard: give one such as http://127.0.0.1:8265")
        token = os.environ.get("RAY_AUTH_TOKEN_PATH")
        if token and not os.path.isfile(token):
            raise RunError(f"there is no token in '{token}': set RAY_AUTH_TOKEN_PATH to the token's file")
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname, port), timeout=10).close()  # Ray would wait for minutes
            # Ray prefers these variables to what it is told.
            os.environ["RAY_API_SERVER_ADDRESS"] = self.url
            for name in TALKATIVE:
                logging.getLogger(name).setLevel(logging.ERROR)
            self.jobs = JobSubmissionClient(self.url)
        except AuthenticationError as error:
            raise RunError(_refusal(self.url, error)) from error
        except (OSError, RuntimeError, ValueError) as error:
            raise RunError(
                f"can't reach a Ray dashboard at '{self.url}': {_first_line(error)}: start the cluster with its "
                "dashboard, or forward its port to this machine"
            ) from error

    def submit(self, command: Sequence[str], python: str = "python", root: Path | None = None) -> str:
        """Starts a command of ours and returns the job's id.

        Args:
            python: the interpreter, as the cluster's head finds it.
            root: the folder to ship; None: the cluster has dreamer4 installed.

        Raises:
            RunError: what would be shipped is too large, or the cluster refuses the job.
        """
        runtime_env: dict[str, Any] = {"env_vars": ENVIRONMENT, "config": {"setup_timeout_seconds": 120}}
        if root is not None:
            runtime_env["working_dir"] = str(root)
        words = shlex.join(command)
        try:
            return self.jobs.submit_job(
                entrypoint=f"{shlex.quote(python)} -m cluster.main {words}",
                runtime_env=runtime_env,
                metadata={"command": f"dreamer4 {words}"},
            )
        except AuthenticationError as error:
            raise RunError(_refusal(self.url, error)) from error
        except (OSError, RuntimeError, ValueError) as error:
            if "413" in str(error) or "too large" in str(error).lower() or "exceeds" in str(error).lower():
                raise RunError(
                    f"'{root}' is too large to be shipped, Ray takes 100 MiB: "
                    f"name what isn't code in '{root}/.rayignore'"
                ) from error
            raise RunError(f"the cluster at '{self.url}' refuses the job: {_first_line(error)}") from error

    def follow(self, job: str) -> int:
        """Prints what a job says until it ends; returns its exit status. An interrupt stops the job and waits for it.

        Raises:
            RunError: the cluster doesn't answer any more, or couldn't run the job.
            KeyboardInterrupt: after an interrupt, when the job has ended.
        """
        self._printed = 0
        try:
            while not (info := self._info(job)).status.is_terminal():
                asyncio.run(self._tail(job))
        except KeyboardInterrupt:
            print(f"\nstopping job {job}; interrupt again to leave it to itself", file=sys.stderr, flush=True)
            self.jobs.stop_job(job)
            while not self._info(job).status.is_terminal():
                time.sleep(0.5)
            self._print_rest(job)
            raise
        self._print_rest(job)
        return _exit_status(info)

    async def _tail(self, job: str) -> None:
        """Prints the log as it comes, as long as the connection holds; not again what is printed already."""
        seen = 0
        try:
            async for text in self.jobs.tail_job_logs(job):
                print(text[max(0, self._printed - seen) :], end="", flush=True)
                seen += len(text)
                self._printed = max(self._printed, seen)
        except (RuntimeError, OSError, aiohttp.ClientError):
            await asyncio.sleep(1)  # the caller asks again how the job is

    def _print_rest(self, job: str) -> None:
        with suppress(RuntimeError, OSError):  # the log may lie on a head that is gone
            print(self.jobs.get_job_logs(job)[self._printed :], end="", flush=True)

    def _info(self, job: str) -> JobDetails:
        """How a job is; waits a while for a head that is being started again."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self.jobs.get_job_info(job)
            except (OSError, RuntimeError) as error:  # those of requests are OSErrors
                if time.monotonic() > deadline:
                    raise RunError(
                        f"the cluster at '{self.url}' doesn't answer any more ({_first_line(error)}): when it is back, "
                        "submit the same command again to go on"
                    ) from error
                time.sleep(1)


def address(given: str | None, env: Mapping[str, str]) -> str:
    """The dashboard that is meant.

    Raises:
        ConfigError: none is.
    """
    for candidate in (given, *(env.get(name) for name in ADDRESSES)):
        if candidate:
            return candidate
    raise ConfigError(f"which cluster? Give --address http://HOST:8265, or set {ADDRESSES[0]}")


def absolute(command: Sequence[str], folder: Path) -> list[str]:
    """A command of ours with all its paths made absolute, URLs apart: a job's folder is thrown away at its end.

    Raises:
        ConfigError: there is no command, it makes no sense as a job, or its run directory is left open.
    """
    words = list(command[1:] if command[:1] == ["--"] else command)
    if not words or words[0].startswith("-"):
        raise ConfigError("submit what? Give a command after `--`, such as `-- train policy --run /shared/runs/mine`")
    if words[0] == "submit":
        raise ConfigError("a job can't submit jobs: give the command itself")
    if words[0] == "quickstart" and not any(word.partition("=")[0] == "--run" for word in words):
        raise ConfigError("a submitted quickstart needs its --run DIR, on a disk that the cluster's nodes share")
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        before = words[place - 1] if place else ""
        if equals and _is_path(name):
            words[place] = f"{name}={_placed(name, value, folder)}"
        elif _is_path(before) or (place and words[0] == "compare" and not word.startswith("-")):
            words[place] = _placed(before, word, folder)
    return words


def _is_path(name: str) -> bool:
    return name in PATHS or name.removeprefix("--") in (*paths.SETTINGS, *paths.LISTS)


def _placed(name: str, value: str, folder: Path) -> str:
    """The value of an option or a setting, taken from `folder`."""
    setting = name not in PATHS and _is_path(name)
    return paths.absolute_value(name.removeprefix("--"), value, folder) if setting else paths.absolute(value, folder)


def source() -> Path | None:
    """The repository that this code runs from; None where it is installed as a package."""
    return ROOT if (ROOT / "pyproject.toml").is_file() else None


def _exit_status(info: JobDetails) -> int:
    """Of a job that has ended; says why where the job itself couldn't."""
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        print(f"dreamer4: job {info.submission_id} was stopped: the same command goes on", file=sys.stderr)
        return STOPPED
    if info.driver_exit_code is None:
        raise RunError(f"job {info.submission_id} failed: {(info.message or 'for an unknown cause').strip()}")
    return info.driver_exit_code if info.driver_exit_code > 0 else 128 - info.driver_exit_code


def _refusal(url: str, error: AuthenticationError) -> str:
    if "Authentication required" in str(error):
        return f"the cluster at '{url}' wants its token: set RAY_AUTH_TOKEN_PATH to the token's file"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")
    where = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else f"'{path}'"
    return f"the cluster at '{url}' refuses the token in {where}: set RAY_AUTH_TOKEN_PATH to the file with its own"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
