"""Checkpoints: safetensors for numbers, JSON for the rest, never pickle, which can run code when it is read.

A checkpoint is a folder named by its step. It is written under a temporary name and renamed when it is whole, so a
killed writer leaves the former checkpoints as they were.
"""

import json
import re
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dreamer4.errors import CheckpointError, RunError
from dreamer4.files import flush, read_json, replacing, write_json

NUMBERS = ("weights.safetensors", "state.safetensors")
RECORD = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """What `Checkpoints.load` gives back."""

    step: int
    weights: dict[str, Tensor]
    state: Any
    config: dict[str, Any]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes or replaces one safetensors file, atomically. Tensors may be views, share storage, or be on a GPU.

    Raises:
        RunError: the file can't be written.
    """
    with replacing(path) as temporary:
        _write_tensors(temporary, tensors, metadata)


def load_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """CPU tensors by name, in memory of their own (the file may be removed afterwards).

    Args:
        prefix: only those whose names begin with it are read; it is taken off their names.

    Raises:
        CheckpointError: the file is missing, cut short, or not safetensors; the message names it.
    """
    with readable(path), safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name).clone() for name in names}


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raises a `CheckpointError` that names the file where it is missing, cut short, or not safetensors."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"can't read '{path}': {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"'{path}' is cut short or not a safetensors file: {error}") from error


class Checkpoints:
    """The checkpoints of one stage: `folder/<step>/{weights.safetensors, state.safetensors, checkpoint.json}`."""

    def __init__(self, folder: Path, keep: int = 2, hint: str = ""):
        """`hint` says what makes a checkpoint, to whoever wants one where there is none."""
        self.folder, self.keep, self.hint = Path(folder), keep, hint

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, ascending."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        matches = [re.fullmatch(r"(?:\.replaced-)?(\d{8,})", name) for name in names]
        return sorted({int(match[1]) for match in matches if match})

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def save(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        state: Any,
        config: Mapping[str, Any],
        permitted: Callable[[], None] = lambda: None,
    ) -> Path:
        """Writes the checkpoint of a step, then removes those beyond the newest `keep`.

        Args:
            state: optimizer, normaliser and counters: nested dicts (keys str or int), lists and tuples of tensors,
                numbers, booleans, strings and None.
            config: JSON object that `load` compares.
            permitted: called when all is written, right before the checkpoint gets its name; whoever may not write any
                more raises there.

        Raises:
            RunError: the folder can't be written, such as a full disk; the former checkpoints are untouched.
        """
        numbers: dict[str, Tensor] = {}
        structure = _encode(state, numbers, "state")
        temporary = self._partial()
        try:
            self._tidy()
            temporary.mkdir(parents=True)
            for name, tensors in zip(NUMBERS, (weights, numbers), strict=True):
                _write_tensors(temporary / name, tensors)
                flush(temporary / name)
            files = {name: _fingerprint(temporary / name) for name in NUMBERS}
            write_json(temporary / RECORD, {"step": step, "config": config, "files": files, "state": structure})
            permitted()
            return self._publish(step, temporary)
        except OSError as error:
            raise RunError(f"can't write checkpoint {step} to '{self.folder}': {error.strerror or error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def load(self, step: int | None = None, config: Mapping[str, Any] | None = None) -> Checkpoint:
        """Reads the checkpoint of a step, by default the latest.

        Args:
            config: what the reader was built from; must equal the saved one.

        Raises:
            CheckpointError: there is none, it is damaged, or it belongs to another config.
        """
        step = self._known(step)
        folder = self._place(step)
        try:
            record = read_json(folder / RECORD)
            if config is not None:
                _check_config(folder, record["config"], json.loads(json.dumps(config)))
            for name in NUMBERS:
                _check_file(folder / name, record["files"][name])
            weights, numbers = (load_tensors(folder / name) for name in NUMBERS)
            return Checkpoint(record["step"], weights, _decode(record["state"], numbers), record["config"])
        except RunError as error:
            raise CheckpointError(f"checkpoint {step} can't be used: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"'{folder / RECORD}' is not the record of a checkpoint: {error!r}") from error

    def receive(self, step: int, download: Callable[[Path], None]) -> Path:
        """Takes in the checkpoint of a step from elsewhere: `download` fills a folder; `load` will check what's in it.

        Raises:
            RunError: the folder can't be written, or the other place not be read.
        """
        temporary = self._partial()
        try:
            temporary.mkdir(parents=True)
            download(temporary)
            return self._publish(step, temporary)
        except OSError as error:
            raise RunError(f"can't write checkpoint {step} to '{self.folder}': {error.strerror or error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def weights_file(self, step: int | None = None) -> Path:
        """Where the weights of a step are, by default the latest, for who reads a part of them. Nothing is checked.

        Raises:
            CheckpointError: there is none.
        """
        return self._place(self._known(step)) / NUMBERS[0]

    def _known(self, step: int | None) -> int:
        """A step that is asked for, or the latest."""
        if (step := self.latest() if step is None else step) is None:
            raise CheckpointError(f"there is no checkpoint in '{self.folder}'{self.hint and f': {self.hint}'}")
        return step

    def _place(self, step: int) -> Path:
        """Where a step is; under the aside name if a writer was killed while it replaced a checkpoint."""
        place, aside = self.folder / f"{step:08d}", self.folder / f".replaced-{step:08d}"
        return aside if aside.exists() and not place.exists() else place

    def _publish(self, step: int, temporary: Path) -> Path:
        """Gives a whole folder its name, and forgets old checkpoints only afterwards."""
        place, aside = self.folder / f"{step:08d}", self.folder / f".replaced-{step:08d}"
        flush(temporary)
        if place.exists():
            place.rename(aside)
        temporary.rename(place)
        flush(self.folder)
        if aside.exists():
            self._remove(aside)
        for old in self.steps()[: -self.keep]:
            self._remove(self._place(old))
        return place

    def _partial(self) -> Path:
        """A name for a folder that is being written or removed; readers don't look at it."""
        return self.folder / f".partial-{secrets.token_hex(4)}"

    def _remove(self, folder: Path) -> None:
        """Takes the name away first: what bears a step is whole at any moment."""
        partial = self._partial()
        folder.rename(partial)
        shutil.rmtree(partial, ignore_errors=True)

    def _tidy(self) -> None:
        """Repairs and removes what a killed writer left behind."""
        for aside in self.folder.glob(".replaced-*"):
            place = self.folder / aside.name.removeprefix(".replaced-")
            if place.exists():
                self._remove(aside)
            else:
                aside.rename(place)
        for partial in self.folder.glob(".partial-*"):
            shutil.rmtree(partial, ignore_errors=True)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """safetensors refuses tensors that share storage, such as tied weights: these are copied."""
    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    try:
        save_file(plain, path, dict(metadata) if metadata else None)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise RunError(f"can't write '{path}': {error}") from error


def _fingerprint(path: Path) -> dict[str, int]:
    checksum, size = 0, 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            checksum, size = zlib.crc32(block, checksum), size + len(block)
    return {"bytes": size, "crc32": checksum}


def _check_file(path: Path, saved: dict[str, int]) -> None:
    try:
        found = _fingerprint(path)
    except OSError as error:
        raise CheckpointError(f"can't read '{path}': {error.strerror or error}") from error
    if found["bytes"] != saved["bytes"]:
        raise CheckpointError(
            f"'{path}' has {found['bytes']} bytes instead of {saved['bytes']}; remove its folder to use the one before"
        )
    if found["crc32"] != saved["crc32"]:
        raise CheckpointError(
            f"'{path}' is damaged: checksum {found['crc32']:08x} instead of {saved['crc32']:08x}; "
            f"remove its folder to use the one before"
        )


def _check_config(folder: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    there = {key: json.dumps(value) for key, value in _leaves(saved)}
    here = {key: json.dumps(value) for key, value in _leaves(wanted)}
    differences = [
        f"{key} is {there.get(key, 'absent')} there and {here.get(key, 'absent')} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]
    if differences:
        raise CheckpointError(f"checkpoint '{folder}' belongs to another config: {'; '.join(differences)}")


def _leaves(value: Any, key: str = "") -> list[tuple[str, Any]]:
    """Dotted keys of everything that isn't a filled dict or list."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    prefix = f"{key}." if key else ""
    leaves = [leaf for name, child in items for leaf in _leaves(child, f"{prefix}{name}")]
    return leaves or ([(key, value)] if key else [])


def _encode(value: Any, numbers: dict[str, Tensor], place: str) -> Any:
    """JSON of a nested state. Containers become one-key objects, so that integer keys and tuples come back as such."""
    if isinstance(value, Tensor):
        name = place if place not in numbers else f"{place}#{len(numbers)}"  # {"a.b": x, "a": {"b": y}} share a place
        numbers[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str | int):
                raise TypeError(f"a key of {place} is {key!r}; checkpoints keep str and int keys")
        return {"dict": [[key, _encode(child, numbers, f"{place}.{key}")] for key, child in value.items()]}
    if isinstance(value, list | tuple):
        children = [_encode(child, numbers, f"{place}.{index}") for index, child in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": children}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{place} is a {type(value).__name__}, which checkpoints don't keep")


def _decode(value: Any, numbers: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return numbers[content]
    if kind == "dict":
        return {key: _decode(child, numbers) for key, child in content}
    children = [_decode(child, numbers) for child in content]
    return tuple(children) if kind == "tuple" else children
