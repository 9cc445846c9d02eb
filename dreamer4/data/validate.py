"""Checks a whole dataset, shard by shard, and can take what is bad out of it."""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreamer4.data.checks import check_shard, some_shards
from dreamer4.data.fault import KINDS, Fault
from dreamer4.data.quarantine import quarantine
from dreamer4.data.schema import MANIFEST, Manifest
from dreamer4.data.storage import Folder, folder_at, local_path
from dreamer4.data.timing import Timing, probe_timing
from dreamer4.errors import ConfigError, DataError, nearest


@dataclass(frozen=True)
class Validation:
    """What was found.

    `accepted` are faults of kinds that the caller allows; `good`: of every shard the episodes without a fault that
    isn't allowed, counted from the shard's first.
    """

    faults: list[Fault]
    accepted: list[Fault]
    good: tuple[tuple[int, ...], ...]
    manifest: Manifest | None
    timing: Timing | None

    def to_json(self) -> dict[str, Any]:
        return {
            "episodes": 0 if self.manifest is None else self.manifest.episodes,
            "good": sum(map(len, self.good)),
            "faults": [asdict(fault) for fault in self.faults],
            "accepted": [asdict(fault) for fault in self.accepted],
            "timing": None if self.timing is None else asdict(self.timing),
        }


def validate(
    place: Path | str,
    allow: Collection[str] = (),
    threads: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Validation:
    """Reads every byte of a dataset; nothing in it makes this raise.

    Args:
        place: a path, or a URL that pyarrow or fsspec knows.
        allow: kinds of faults that are accepted, such as `duplicate` where a simulator repeats itself.
        threads: that decode frames side by side.
        seed: of the clips that the timing probe looks at.
        progress: told after every shard.

    Raises:
        ConfigError: there is no such kind of fault.
        DataError: no file system of this kind is known, or it can't be reached.
    """
    for kind in allow:
        if kind not in KINDS:
            raise ConfigError(f"there is no fault of kind '{kind}'{nearest(kind, KINDS)}")
    folder = folder_at(place)
    try:
        manifest = Manifest.read(folder)
    except DataError as error:
        return Validation([Fault("manifest", MANIFEST, str(error))], [], (), None, None)
    checked, found = [], _twice_named(manifest)
    for number in range(len(manifest.shards)):
        checked.append(check_shard(folder, manifest, number, threads))
        progress(number + 1, len(manifest.shards))
    found += [fault for one in checked for fault in one.faults]
    found += _duplicates(manifest, [one.digests for one in checked])
    timing = _timing(folder, manifest, [one.good for one in checked], seed)
    if timing is not None and timing.shift:
        found.append(Fault("timing", MANIFEST, timing.text))
    faults = [fault for fault in found if fault.kind not in allow]
    bad, good, before = {fault.episode for fault in faults}, [], 0
    for shard, one in zip(manifest.shards, checked, strict=True):
        lost = set(range(shard.episodes)) - set(one.good) - {f.episode - before for f in found if f.episode is not None}
        good.append(tuple(e for e in range(shard.episodes) if e not in lost and before + e not in bad))
        before += shard.episodes
    return Validation(faults, [fault for fault in found if fault.kind in allow], tuple(good), manifest, timing)


def take_out(place: Path | str, validation: Validation) -> Path | None:
    """Leaves only the good episodes in the dataset; returns where the former one is, or None if nothing had to go.

    Raises:
        DataError: nothing good is left, the manifest can't be read, or actions are shifted, which this can't repair.
        RunError: the dataset isn't on a disk of this machine, or can't be written.
    """
    if not validation.faults:
        return None
    if validation.manifest is None:
        raise DataError(f"'{place}' can't be repaired: {validation.faults[0].text}")
    if all(fault.kind == "timing" for fault in validation.faults):
        raise DataError(f"'{place}' is not changed: {validation.faults[0].text}; import it again with other timing")
    return quarantine(local_path(place), validation.manifest, validation.good, validation.faults)


def _twice_named(manifest: Manifest) -> list[Fault]:
    seen, faults = set[str](), []
    for shard in manifest.shards:
        if shard.file in seen:
            faults.append(Fault("manifest", shard.file, "the manifest names it more than once"))
        seen.add(shard.file)
    return faults


def _duplicates(manifest: Manifest, digests: list[dict[int, bytes]]) -> list[Fault]:
    """Every episode that holds what an earlier one holds."""
    first, faults, before = dict[bytes, int](), [], 0
    for shard, mine in zip(manifest.shards, digests, strict=True):
        for episode, digest in mine.items():
            known = first.setdefault(digest, before + episode)
            if known != before + episode:
                faults.append(Fault("duplicate", shard.file, f"is episode {known} again", before + episode))
        before += shard.episodes
    return faults


def _timing(folder: Folder, manifest: Manifest, good: list[tuple[int, ...]], seed: int) -> Timing | None:
    """Of the shards without a fault, as one dataset; None where there is none."""
    whole = [number for number, shard in enumerate(manifest.shards) if len(good[number]) == shard.episodes]
    if not whole:
        return None
    try:
        return probe_timing(some_shards(folder, manifest, whole), seed)
    except DataError:  # it changes while we look
        return None
