"""The Ray that a run stands on: a local one for the length of the run, or the cluster that RAY_ADDRESS names."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import ray
from ray._private.utils import estimate_available_memory
from ray.exceptions import AuthenticationError

from cluster.config import RunConfig
from cluster.local.ray_start import WORKER_NICENESS
from cluster.session import temporary_folder, write_token
from dreamer4.errors import RunError


@contextmanager
def ray_session(config: RunConfig) -> Iterator[str]:
    """Ray for the length of a `with` block; gives the address of the dashboard, or "" where it has none.

    Attaches to the cluster of RAY_ADDRESS where that is set, and uses the caller's connection where Ray is up already.
    Within the block SIGTERM, which `ray job stop` and batch systems send, raises KeyboardInterrupt, as SIGINT does.

    Raises:
        RunError: the port of the dashboard is taken, there are too few GPUs, or the cluster can't be reached.
    """
    address = os.environ.get("RAY_ADDRESS", "local")
    if ray.is_initialized():
        yield ""
    elif address != "local":
        with _attached(address) as url, _terminated_as_interrupted():
            yield url
    else:
        with (
            temporary_folder() as folder,
            _token(folder),
            _local(config, folder) as url,
            _terminated_as_interrupted(),
        ):
            yield url


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """In place of what `ray.init` does on SIGTERM: it aborts, with a dump of the stack."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def logical_cpus(config: RunConfig) -> int:
    """Room for the widest stage: our actors count one CPU each, whatever the machine has."""
    resources = config.resources
    _, workers = resources.worker_bounds()
    imagining = 2 + workers * resources.shards  # the learner, and a small part for the coordinator
    return max(imagining, resources.trainers, resources.collectors, config.evaluation.actors)


@contextmanager
def _attached(address: str) -> Iterator[str]:
    """A cluster that lives on afterwards."""
    try:
        _check_listening(address)
        context = ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except AuthenticationError as error:
        raise RunError(
            f"the Ray cluster at '{address}' wants its token: set RAY_AUTH_TOKEN_PATH to the token's file, or "
            "RAY_AUTH_MODE=disabled if it has none"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise RunError(f"can't reach the Ray cluster at '{address}' (RAY_ADDRESS): {_first_line(error)}") from error
    try:
        yield _url(context.dashboard_url)
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Raises `OSError` if nobody answers at `host:port`; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "//" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def _local(config: RunConfig, folder: Path) -> Iterator[str]:
    resources = config.resources
    port = resources.dashboard_port
    if port is not None and not _is_free(port):
        raise RunError(f"port {port} is in use: give another resources.dashboard_port, or none for the first free one")
    try:
        context = ray.init(
            address="local",
            num_cpus=logical_cpus(config),
            object_store_memory=resources.object_store_mb * 1_000_000,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=port,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _system_config={"worker_niceness": WORKER_NICENESS},
            _temp_dir=str(folder / "ray"),  # which Ray opens to everybody, so it lies within a folder that is ours
        )
    except Exception as error:  # Ray raises this very class where its processes need more than 30 s to come up
        ray.shutdown()
        raise RunError(f"can't start Ray: {_cause(error, resources.object_store_mb)}") from error
    try:
        _check_gpus(config, ray.cluster_resources().get("GPU", 0))
        yield _url(context.dashboard_url)
    finally:
        ray.shutdown()


def _cause(error: Exception, size: int) -> str:
    """What Ray says of a start that failed, and what helps where we know it.

    Args:
        size: of the object store, in MB. What Ray advises on it is for programs that call `ray.init`.
    """
    said = str(error).lower()
    if isinstance(error, TimeoutError) or "timed out" in said or "deadline" in said:
        return f"{_first_line(error)}: if this machine was busy, give the same command again"
    if not isinstance(error, ValueError) or "object store" not in said:
        return _first_line(error)
    sentence = _first_line(error).partition(". ")[0]
    if "minimum" in said:
        return f"{sentence}: raise resources.object_store_mb ({size})"
    free = estimate_available_memory() // 1_000_000
    return f"{sentence}: lower resources.object_store_mb ({size}), this machine has {free} MB of memory free"


def _check_gpus(config: RunConfig, there: float) -> None:
    """Ray would wait for ever for a GPU that isn't there; on a cluster, an autoscaler may bring it."""
    resources = config.resources
    imagining = resources.trainer_gpus + resources.workers * resources.shards * resources.worker_gpus
    wanted = max(imagining, resources.trainers * resources.trainer_gpus)
    if wanted > there:
        raise RunError(
            f"the run asks for {wanted:g} GPUs and this machine has {there:g}: lower resources.trainer_gpus, "
            "resources.trainers, resources.worker_gpus, resources.shards or resources.workers"
        )


@contextmanager
def _token(folder: Path) -> Iterator[None]:
    """Only who can read the token's file can talk to this Ray. A token that the user has set is left alone."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        yield
        return
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(write_token(folder))
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN_PATH"]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _url(dashboard: str | None) -> str:
    return f"http://{dashboard}" if dashboard else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
