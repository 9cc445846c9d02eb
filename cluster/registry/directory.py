"""The registry without a service: files in the run directory, for the processes of one machine.

On a shared disk it works as well as that disk's locks do, and its caches may hide a take-over for seconds.
"""

import json
import time
from pathlib import Path
from typing import Any

from cluster.registry.lease_files import Entry, LeaseFiles
from cluster.registry.rules import Lease, check_claim, encode, lost, refused, run_key
from dreamer4.errors import RunError
from dreamer4.files import read_json, write_json


class DirectoryRegistry:
    """See `cluster.registry.registry.Registry`. The lease of a killed process of this machine is free at once."""

    def __init__(self, path: str | Path):
        self.run = run_key(path)
        self.files = LeaseFiles(self.run)

    def acquire(self, holder: str, ttl: float) -> Lease:
        check_claim(holder, ttl)
        with self.files.locked():
            self._check_ours()
            there = self._living()
            if there is not None and there.holder != holder:
                raise refused(self.run, str(there.holder), time.time() - there.since)
            token = self.files.newest() + 1
            self.files.raise_fence(token)
            self.files.write(holder, token, ttl)
        return Lease(self.run, holder, token)

    def _check_ours(self) -> None:
        if place := self.files.elsewhere():
            raise RunError(
                f"the lease of run '{self.run}' is kept by {place}: set DREAMER4_REGISTRY to it, or, if that is gone "
                f"for good and nobody writes the run, remove '{self.files.elsewhere_path}'"
            )

    def renew(self, lease: Lease, ttl: float) -> None:
        check_claim(lease.holder, ttl)
        with self.files.locked():
            self.check(lease)
            self.files.write(lease.holder, lease.token, ttl, self._since(lease))

    def _since(self, lease: Lease) -> float | None:
        """When it was acquired; unknown if the file was damaged, which the renewal repairs."""
        try:
            entry = self.files.entry()
        except RunError:
            return None
        return entry.since if entry is not None and entry.token == lease.token else None

    def release(self, lease: Lease) -> None:
        with self.files.locked():
            if self.files.newest() == lease.token:
                # The fence goes up, so that a copy of the lease is worth nothing from now on.
                self.files.raise_fence(lease.token + 1)
                self.files.write(None, lease.token + 1, 0)

    def check(self, lease: Lease) -> None:
        newest = self.files.newest()
        if newest != lease.token:
            raise lost(lease, newest, self._holder())
        self._check_ours()

    def _holder(self) -> str | None:
        try:
            there = self._living()
        except RunError:
            return None
        return None if there is None else there.holder

    def _living(self) -> Entry | None:
        entry = self.files.entry()
        return entry if entry is not None and entry.alive() else None

    def publish(self, lease: Lease, **fields: Any) -> None:
        fresh = {name: json.loads(text) for name, text in encode(fields).items()}
        with self.files.locked():
            self.check(lease)
            told = self._told()
            facts, versions = {**told["facts"], **fresh}, told["versions"]
            if "weights_version" in fresh:
                stage = facts.get("stage", "")
                versions[stage] = max(facts.pop("weights_version"), versions.get(stage, 0))
            write_json(self.files.facts_path, {"updated": time.time(), "facts": facts, "versions": versions})

    def _told(self) -> dict[str, Any]:
        if not self.files.facts_path.exists():
            return {"updated": None, "facts": {}, "versions": {}}
        try:
            told = read_json(self.files.facts_path)
            if all(isinstance(told[name], dict) for name in ("facts", "versions")):
                return told
        except (RunError, TypeError, KeyError):
            pass
        raise RunError(f"'{self.files.facts_path}' is damaged: remove it, the writer of the run tells the facts again")

    def read(self) -> dict[str, Any]:
        self._check_ours()
        told, there, now = self._told(), self._living(), time.time()
        facts, stage = dict(told["facts"]), told["facts"].get("stage", "")
        if stage in told["versions"]:
            facts["weights_version"] = told["versions"][stage]
        updated = told["updated"]
        return {
            "run": self.run,
            "registry": "directory",
            "holder": None if there is None else there.holder,
            "token": self.files.newest(),
            "held_s": None if there is None else now - there.since,
            "updated": updated,
            "age_s": None if updated is None else now - updated,
            **facts,
        }
