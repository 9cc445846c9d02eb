"""Recordings of Gymnasium environments.

Gymnasium itself records films (`RecordVideo`) and no actions. So there are three kinds of files here, by what the user
has: `NAME.npz` of our wrapper `RecordEpisodes` with pictures in it (lossless), `NAME.npz` without pictures beside
`NAME.mp4` of `RecordVideo`, and `NAME.mp4` alone, whose actions are not known.
"""

import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dreamer4.actions import ActionSpace
from dreamer4.data.importers.canvas import Canvas, as_rgb
from dreamer4.data.importers.film import frames_of
from dreamer4.data.importers.importer import Importer, Options, naming, refuse_rate, without
from dreamer4.data.importers.spaces import action_rows, action_space, space_from_json
from dreamer4.data.importers.steps import Recorded, Step, episodes_of
from dreamer4.data.schema import Recording
from dreamer4.errors import DataError

FORMAT = "dreamer4-gymnasium"
# What zipfile and numpy raise of files that were changed.
DAMAGE = (
    *(KeyError, ValueError, OSError, EOFError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
LARGEST_PIECE = 1 << 30  # bytes of one array of a file; ours have 64 frames


class GymnasiumImporter(Importer):
    """All `.npz` and `.mp4` files in a folder and below; each name is one episode."""

    per_shard = 64

    def __init__(self, root: Path, options: Options):
        super().__init__(root, options)
        refuse_rate(options, "Gymnasium")
        if not self.root.is_dir():
            raise DataError(f"'{root}' is no folder: give the one in which the episodes lie")

    @cached_property
    def canvas(self) -> Canvas:
        if self.options.canvas is not None:
            return self.options.canvas
        height, width, _ = next(self._frames(self.sources()[0])).shape
        return Canvas(height, width, "exact")

    @cached_property
    def _header(self) -> dict[str, Any] | None:
        """Of the first episode that has one: all have to have the same."""
        labelled = next((name for name in self.sources() if self._file(name, ".npz").is_file()), None)
        return None if labelled is None else read_header(self._file(labelled, ".npz"))

    @property
    def recording(self) -> Recording:
        header = self._header
        if header is None:  # films only
            return Recording(
                self.options.name or self.root.name, self.canvas.shape, ActionSpace.discrete(2, "unknown"), ("none",)
            )
        name = self.options.name or header["env"]
        with naming(self.root):
            actions = action_space(space_from_json(header["action_space"]))
        return Recording(name, self.canvas.shape, actions, (name,))

    def sources(self) -> list[str]:
        found = [path for path in self.root.rglob("*") if path.suffix in (".npz", ".mp4")]
        names = {str(path.relative_to(self.root).with_suffix("")) for path in found}
        names = without(list(names), self.options.exclude)
        if not names:
            raise DataError(f"'{self.root}' holds no .npz of RecordEpisodes and no .mp4 of RecordVideo")
        return names

    def files(self, source: str) -> list[Path]:
        return [path for path in (self._file(source, suffix) for suffix in (".npz", ".mp4")) if path.is_file()]

    def episodes(self, source: str) -> Iterator[Recorded]:
        return episodes_of(self._steps(source), source, self.recording.actions.columns)

    def _steps(self, source: str) -> Iterator[Step]:
        path, film = self._file(source, ".npz"), self._file(source, ".mp4")
        if not path.is_file():
            yield from (Step(self.canvas.place(frame, film)) for frame in frames_of(film))
            return
        header = read_header(path)
        if self._header is not None and header["action_space"] != self._header["action_space"]:
            raise DataError(f"'{path}' was recorded with another action space than the first episode: import it apart")
        with naming(path), opened(path) as file:
            space = space_from_json(header["action_space"])
            rewards = np.asarray(array(file, path, "rewards"), np.float32)
            count = len(rewards)
            nested = {key: array(file, path, key) for key in file.files if key.startswith("actions")}
            acts = action_rows(space, unflattened(nested, space), count)
            terminal, truncated = (bool(array(file, path, key)) for key in ("terminated", "truncated"))
        frames = 0
        for t, frame in enumerate(self._frames(source)):
            frames += 1
            if t > count:
                raise DataError(f"'{path}' has {count} actions, so {count + 1} frames are wanted, and there are more")
            last = t == count
            yield Step(
                self.canvas.place(frame, path),
                None if last else acts[t],
                reward=float(rewards[t - 1]) if t else 0.0,
                terminal=last and terminal,
                truncated=last and truncated,
                success=last and bool(header.get("success", False)),
            )
        if frames <= count:
            raise DataError(f"'{path}' has {count} actions, so {count + 1} frames are wanted, and there are {frames}")

    def _frames(self, source: str) -> Iterator[np.ndarray]:
        path = self._file(source, ".npz")
        if path.is_file():
            with opened(path) as file:
                pieces = sorted(key for key in file.files if key.startswith("frames_"))
                for key in pieces:
                    yield from as_rgb(array(file, path, key), f"'{path}': the frames")
            if pieces:
                return
        film = self._file(source, ".mp4")
        if not film.is_file():
            raise DataError(f"'{path}' holds no frames and '{film.name}' is not beside it: record both")
        yield from frames_of(film)

    def _file(self, source: str, suffix: str) -> Path:
        return self.root / f"{source}{suffix}"


def read_header(path: Path) -> dict[str, Any]:
    """The facts about an episode that are no arrays; raises `DataError` if the file isn't one of ours."""
    with opened(path) as file:
        text = array(file, path, "header")
    try:
        header = json.loads(str(text))
        named = isinstance(header["env"], str) and header["env"]
        if header["format"] != FORMAT or not named or not header["action_space"]:
            raise ValueError(f"format is {header['format']!r}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is not an episode of RecordEpisodes: {error}") from error
    return header


def opened(path: Path) -> Any:
    """An .npz whose arrays are read one by one; nothing in it is unpickled."""
    try:
        return np.load(path, allow_pickle=False)
    except DAMAGE as error:
        raise DataError(f"'{path}' is damaged or no .npz: {error}") from error


def array(file: Any, path: Path, key: str) -> np.ndarray:
    """Raises `DataError`, naming file and key, if the array is missing, damaged or absurdly large."""
    try:
        size = file.zip.getinfo(f"{key}.npy").file_size
        if size > LARGEST_PIECE:
            raise DataError(f"'{path}': '{key}' has {size} bytes, at most {LARGEST_PIECE} are possible")
        return file[key]
    except DAMAGE as error:
        raise DataError(f"'{path}' lacks '{key}' or holds it damaged: {error}") from error


def unflattened(arrays: dict[str, np.ndarray], space: Any, name: str = "actions") -> Any:
    """Arrays with names such as `actions.hand.0` in the nesting of the space."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return {key: unflattened(arrays, inner, f"{name}.{key}") for key, inner in space.items()}
    if isinstance(space, spaces.Tuple):
        return [unflattened(arrays, inner, f"{name}.{index}") for index, inner in enumerate(space)]
    if name not in arrays:
        raise DataError(f"the recording lacks '{name}'")
    return arrays[name]
