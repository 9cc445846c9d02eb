"""Which runs exist, how far they are, and who alone may write each of them.

The registry of a run is opened from its path in any process. It is a Redis where DREAMER4_REGISTRY names one
(`redis://:PASSWORD@HOST:PORT/DB`), and files in the run directory where that isn't set. Both obey the same tests.

What a lease promises. Everybody may fail at any moment, be stopped for an hour and go on, or be cut off. Time alone
can't tell who may write then: a writer that was stopped doesn't know that its time has passed. So every acquisition
gets a larger token than all before, and the writer shows its token before it publishes anything (`check`, `publish`);
after a take-over that fails for ever. Time only decides how soon another one may take over.

What stays open is the moment between a successful `check` and the rename that publishes a checkpoint. The check of
`lease.py` leaves at least half of the lease's time for it; who is stopped right there for longer can still rename.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from cluster.registry.directory import DirectoryRegistry
from cluster.registry.redis import RedisRegistry, RedisService, known_runs
from cluster.registry.rules import Lease, run_key
from dreamer4.errors import RunError

__all__ = ["ENVIRONMENT", "Lease", "Registry", "list_runs", "open_registry"]

ENVIRONMENT = "DREAMER4_REGISTRY"
DEFAULT_ROOT = Path("runs")


class Registry(Protocol):
    """The registry of one run, for any number of threads.

    Whatever it does, it raises `RunError` if it can't be reached or is damaged: then nothing may be written for good.
    """

    run: str

    def acquire(self, holder: str, ttl: float) -> Lease:
        """Makes the caller the only writer, with a token larger than all before.

        Args:
            holder: names one writer over all its restarts. The same name takes over at once, because Ray has one living
                actor of a name; so it has to say which cluster the actor is of, or which process this is.
            ttl: seconds until another one may take over, if the lease isn't renewed. In the directory registry it is
                the process that acquired or renewed last whose death, on this machine, frees the run at once.

        Raises:
            RunError: another holder writes the run; he is named, with the seconds since he acquired it.
        """
        ...

    def renew(self, lease: Lease, ttl: float) -> None:
        """Lets the lease last `ttl` seconds from now on. That works after its end as well, if nobody has taken over.

        Raises:
            LeaseLostError: somebody has taken over, it was released, or the registry has lost its memory.
        """
        ...

    def release(self, lease: Lease) -> None:
        """Ends the lease; does nothing if it was lost before."""
        ...

    def check(self, lease: Lease) -> None:
        """To be called right before something is written for good.

        Raises:
            LeaseLostError: as in `renew`.
        """
        ...

    def publish(self, lease: Lease, **fields: Any) -> None:
        """Adds or replaces facts about the run, all or none: `stage`, `state`, `step`, `steps`, `weights_version`,
        `frames_per_s`, `workers`, and whatever else is JSON.

        `weights_version` is kept per stage and only grows: a lower one, of a learner that does some updates again, is
        not taken over. Without `stage` it belongs to the stage published last.

        Raises:
            LeaseLostError: as in `renew`; nothing was changed.
            ValueError, TypeError: a fact has a reserved name or is not JSON.
        """
        ...

    def read(self) -> dict[str, Any]:
        """What was published, and some facts of the registry's own.

        These are `run`, `registry` (who keeps the lease), `holder` and `held_s` (None while nobody writes), `token`
        (the newest), and of the last `publish` `updated` (seconds since 1970) and `age_s` (seconds ago), or None.
        """
        ...


def open_registry(run_path: str | Path) -> Registry:
    """The registry of a run, from this process's environment.

    Raises:
        RunError: the path is a URL, or the environment variable isn't an address of a Redis. It isn't contacted yet.
    """
    url = os.environ.get(ENVIRONMENT)
    return RedisRegistry(run_path, RedisService(url)) if url else DirectoryRegistry(run_path)


def list_runs(root: str | Path | None = None) -> list[dict[str, Any]]:
    """`read` of every run, by path. A run that can't be read has `run` and `error` instead.

    Args:
        root: only runs there or below. None: all that the Redis knows, or those below `runs`.

    Raises:
        RunError: there is no such folder, or the Redis can't be reached.
    """
    url = os.environ.get(ENVIRONMENT)
    if not url:
        return [_read(DirectoryRegistry(run)) for run in _run_directories(Path(DEFAULT_ROOT if root is None else root))]
    service, top = RedisService(url), None if root is None else Path(run_key(root))
    runs = [run for run in known_runs(service) if top is None or Path(run).is_relative_to(top)]
    return [_read(RedisRegistry(run, service)) for run in runs]


def _read(registry: Registry) -> dict[str, Any]:
    try:
        return registry.read()
    except RunError as error:
        return {"run": registry.run, "error": str(error)}


def _run_directories(root: Path) -> Iterator[Path]:
    """Folders with a config.json; there are none within a run."""
    if not root.is_dir():
        raise RunError(f"there is no folder '{root}': name the one that holds the runs by --root")
    for folder, names, files in os.walk(root):
        names[:] = [] if "config.json" in files else sorted(name for name in names if not name.startswith("."))
        if "config.json" in files:
            yield Path(folder)
