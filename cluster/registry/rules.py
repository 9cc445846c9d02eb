"""What every registry of runs obeys: the record of a lease, what may be published, and how refusals read."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamer4.errors import LeaseLostError, RunError

RUNNING, DONE, STOPPED, FAILED = "running", "done", "stopped", "failed"  # the published states of a stage

# Said by the registry itself, so nobody may publish them.
RESERVED = ("run", "registry", "holder", "token", "held_s", "updated", "age_s", "error")


@dataclass(frozen=True)
class Lease:
    """The right to write a run. Made by `Registry.acquire`; it may be pickled and checked from any process.

    It is the token that counts: it grows with every acquisition and is never given out twice, so whoever meets a larger
    one knows that he is not the writer any more, however long he was stopped.
    """

    run: str  # the run directory, absolute and without symbolic links
    holder: str
    token: int


def run_key(path: str | Path) -> str:
    """The name of a run in every registry. On a cluster, all nodes have to see the run under the same path.

    Raises:
        RunError: the path is a URL.
    """
    if "://" in str(path):
        raise RunError(f"run directories are folders that every process sees, got '{path}'")
    return os.path.realpath(path)


def check_claim(holder: str, ttl: float) -> None:
    """Raises `ValueError` on what would make a lease that nobody can name or that ends before it begins."""
    if not holder or not ttl >= 0.001:
        raise ValueError(f"a lease has a holder and at least 0.001 s, got '{holder}' and {ttl} s")


def encode(fields: Mapping[str, Any]) -> dict[str, str]:
    """Facts as JSON texts; a number that is not finite becomes null, because JSON has none.

    Raises:
        ValueError: a name is the registry's own, or a stage or weights version is not one.
        TypeError: a value is not JSON.
    """
    for name in fields.keys() & set(RESERVED):
        raise ValueError(f"'{name}' is said by the registry itself, publish the fact under another name")
    version, stage = fields.get("weights_version", 0), fields.get("stage", "")
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise ValueError(f"weights_version must be a whole number from 0 on, got {version!r}")
    if not isinstance(stage, str):
        raise ValueError(f"stage must be a name, got {stage!r}")
    return {name: json.dumps(_finite(value), allow_nan=False) for name, value in fields.items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def refused(run: str, holder: str, seconds: float) -> RunError:
    """What `acquire` raises while another one writes the run."""
    return RunError(
        f"run '{run}' is written by '{holder}' for {seconds:.0f} s already: wait until it ends, or stop it first"
    )


def lost(lease: Lease, token: int, holder: str | None) -> LeaseLostError:
    """What everybody gets whose token is not the newest."""
    now = f"'{holder}' writes it" if holder else "nobody writes it"
    return LeaseLostError(
        f"'{lease.holder}' has lost the lease of run '{lease.run}' (its token is {lease.token}, the newest is {token}, "
        f"{now}): it must not write there any more"
    )
