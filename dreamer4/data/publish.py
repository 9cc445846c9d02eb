"""Datasets and models as folders that others can take: a listing with checksums, and nothing that could be executed.

The layout is that of a repository of the Hugging Face hub: `README.md` with a YAML head, the files beside it, and
`listing.json`, which names every other file with its size and SHA-256. What isn't listed is not taken.
"""

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.schema import MANIFEST, Manifest
from dreamer4.data.storage import LocalFolder
from dreamer4.errors import DataError, RunError
from dreamer4.files import read_json, write_json

LISTING, CARD = "listing.json", "README.md"
SUFFIXES = (".arrow", ".safetensors", ".json", ".md")  # what may be published and taken; none of it is executed
LARGE = "*.arrow filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
FORMAT = "dreamer4-published"

Files = Mapping[str, Path | bytes]  # name in the repository: file or content


def dataset_files(folder: Path, license: str) -> Files:
    """What is published of a dataset. Raises `DataError` if it is damaged."""
    data = EpisodeDataset.open(folder, verify=True)
    names = [name for shard in data.manifest.shards for name in (shard.file, shard.index)]
    return {CARD: dataset_card(data, license).encode(), **{name: folder / name for name in (MANIFEST, *names)}}


def dataset_card(data: EpisodeDataset, license: str) -> str:
    """With the numbers of the manifest."""
    manifest = data.manifest
    statistics = {name: value for name, value in manifest.statistics.items() if isinstance(value, float)}
    head = {
        "license": license,
        "pretty_name": manifest.env,
        "task_categories": ["reinforcement-learning"],
        "tags": ["dreamer4", "world-model", "video"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "shard-*.arrow"}]}],
    }
    rows = {"episodes": manifest.episodes, "frames": manifest.frames, **statistics}
    return "\n".join(
        [
            front_matter(head),
            f"# Recordings of {manifest.env}",
            "",
            f"Frames of {'x'.join(map(str, manifest.frame))}, kept as {manifest.recording.codec.kind}; actions: "
            f"{', '.join(f'{part.name} ({part.kind}, {part.size})' for part in manifest.actions.parts)}; "
            f"tasks: {', '.join(manifest.tasks)}.",
            "",
            *table(["", "value"], [[name, f"{value:.6g}"] for name, value in rows.items()]),
            "",
            "Read it with `dreamer4 data pull`, which compares every checksum, or with any Arrow program.",
            "",
        ]
    )


def front_matter(head: Mapping[str, Any]) -> str:
    """The YAML head of a card."""
    return f"---\n{yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True)}---\n"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def stage(files: Files, folder: Path) -> None:
    """Fills an empty folder with what is published, and the listing of it.

    Raises:
        DataError: a name is not one that may be published.
        RunError: the folder can't be written.
    """
    listed = {}
    try:
        for name, content in files.items():
            target = folder / safe_name(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
            else:
                shutil.copyfile(content, target)
            listed[name] = {"bytes": target.stat().st_size, "sha256": sha256_of(target)}
        (folder / ".gitattributes").write_text(LARGE)
        write_json(folder / LISTING, {"format": FORMAT, "version": 1, "files": listed})
    except OSError as error:
        raise RunError(f"can't write '{folder}': {error.strerror or error}") from error


def publish(files: Files, target: Path) -> None:
    """Makes or replaces a published folder; a reader sees the former one or the new one.

    Raises:
        RunError: there is something else, or it can't be written.
    """
    if target.exists() and not (target / LISTING).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise RunError(f"'{target}' holds something else than what was published before: choose another folder")
    mark = secrets.token_hex(4)
    temporary, former = (target.with_name(f".{target.name}.{mark}.{kind}") for kind in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        stage(files, temporary)
        if target.exists():
            target.rename(former)
        temporary.rename(target)
    except OSError as error:
        raise RunError(f"can't publish to '{target}': {error.strerror or error}") from error
    finally:
        for remains in (temporary, former):
            shutil.rmtree(remains, ignore_errors=True)


def receive(folder: Path, target: Path) -> None:
    """Copies what a published folder lists into an empty folder, comparing every size and checksum on the way.

    Raises:
        DataError: there is no listing, or it names what may not be taken, or a file is missing, is a link, or isn't
            what is listed.
        RunError: the target can't be written.
    """
    for name, entry in read_listing(folder).items():
        source, place = folder / name, target / name
        linked = any((folder / part).is_symlink() for part in [name, *PurePosixPath(name).parents] if str(part) != ".")
        if linked or not source.is_file():
            raise DataError(f"'{source}' is listed and {'is a link' if linked else 'missing'}: nothing is taken")
        if source.stat().st_size != entry["bytes"]:
            raise DataError(f"'{source}' has {source.stat().st_size} bytes, {entry['bytes']} are listed: pull it again")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, place)
        except OSError as error:
            raise RunError(f"can't copy '{source}' to '{place}': {error.strerror or error}") from error
        if sha256_of(place) != entry["sha256"]:
            raise DataError(f"'{source}' doesn't have the checksum that is listed: it was changed; nothing is taken")


def read_listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Raises `DataError` if there is none, or if it holds a name or an entry that is not allowed."""
    path = folder / LISTING
    if not path.is_file():
        raise DataError(f"'{folder}' was not published by `dreamer4 push`: it has no '{LISTING}'")
    try:
        record = read_json(path)
    except (RunError, RecursionError) as error:
        raise DataError(str(error)) from error
    files = record.get("files") if isinstance(record, dict) and record.get("format") == FORMAT else None
    if not isinstance(files, dict) or record.get("version") != 1:
        raise DataError(f"'{path}' is not a listing of version 1")
    for name, entry in files.items():
        safe_name(name)
        right = isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
        if not right:
            raise DataError(f"'{path}' says of '{name}' neither size nor checksum")
    return files


def safe_name(name: str) -> str:
    """The name, if it leads to a harmless file inside of the folder; else raises `DataError`."""
    parts = name.split("/")
    plain = all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@\-]*", part) for part in parts)  # as `iql@0.003.json`
    if not plain or len(parts) > 3 or PurePosixPath(name).suffix not in SUFFIXES or name == LISTING:
        raise DataError(
            f"'{name}' may not be published or taken: names are relative, of letters, digits, '_', '-', '.' and "
            f"'@', and end in {', '.join(SUFFIXES)}"
        )
    return name


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def receive_dataset(folder: Path, out: Path) -> Manifest:
    """A dataset from a published folder; it appears when all of it has been checked.

    Raises:
        DataError: it is unsafe, changed or damaged.
        RunError: there is something in `out`, or it can't be written.
    """
    if out.exists() and any(out.iterdir()):
        raise RunError(f"there is something in '{out}' already: give another --out")
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        receive(folder, temporary)
        manifest = Manifest.read(LocalFolder(temporary))
        EpisodeDataset.open(temporary, verify=True)
        with suppress(FileNotFoundError):
            out.rmdir()
        os.rename(temporary, out)
        return manifest
    except OSError as error:
        raise RunError(f"can't write '{out}': {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
