"""Minari datasets with pictures: HDF5 (`data/main_data.hdf5`) or one Arrow or Parquet file per episode.

The files are read directly, 64 frames at a time, because Minari's own reader takes whole episodes into memory. An
episode of T actions has T + 1 observations; `rewards[t]` and `terminations[t]` are those of action t, so they arrive
with observation t + 1.
"""

import io
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from PIL import Image, UnidentifiedImageError

from dreamer4.data.importers.canvas import Canvas, as_rgb
from dreamer4.data.importers.hdf5 import Hdf5Reader
from dreamer4.data.importers.importer import Importer, Options, naming, refuse_rate, without
from dreamer4.data.importers.minari_files import HDF5, StoredEpisode, arrow_episode, hdf5_episode
from dreamer4.data.importers.spaces import action_rows, action_space, space_from_json
from dreamer4.data.importers.steps import Recorded, Step, episodes_of
from dreamer4.data.schema import Recording
from dreamer4.errors import DataError

METADATA = "metadata.json"


class MinariImporter(Importer):
    """The folder of a dataset, the one that holds `data/`, or that folder itself. `key` names the picture in Dicts."""

    per_shard = 64

    def __init__(self, root: Path, options: Options):
        super().__init__(root, options)
        refuse_rate(options, "Minari")
        self.data = self.root / "data" if (self.root / "data").is_dir() else self.root
        self.metadata = read_metadata(self.data / METADATA)
        with naming(self.data / METADATA):
            self.space: gymnasium.Space = space_from_json(self.metadata["action_space"])
            self.spaces = [_record(self.metadata.get(name)) for name in ("observation_space", "action_space")]

    @cached_property
    def canvas(self) -> Canvas:
        if self.options.canvas is not None:
            return self.options.canvas
        first = self.sources()[0]
        with self._opened(first) as episode:
            observations, _ = next(episode.pieces())
            height, width = self._pictures(observations, first).shape[1:3]
        return Canvas(height, width, "exact")

    @property
    def recording(self) -> Recording:
        name = self.options.name or self.metadata.get("dataset_id") or self.root.name
        return Recording(name, self.canvas.shape, action_space(self.space), (name,))

    def sources(self) -> list[str]:
        count = self.metadata["total_episodes"]
        names = without([f"episode-{number:06d}" for number in range(count)], self.options.exclude)
        if not names:
            raise DataError(f"'{self.root}' has no episode")
        return names

    def files(self, source: str) -> list[Path]:
        hdf5, folder = self.data / HDF5, self.data / str(_number(source))
        stored = [hdf5] if hdf5.exists() else sorted(path for path in folder.rglob("*") if path.is_file())
        return [self.data / METADATA, *stored]

    def episodes(self, source: str) -> Iterator[Recorded]:
        return episodes_of(self._steps(source), source, self.recording.actions.columns)

    def _steps(self, source: str) -> Iterator[Step]:
        with self._opened(source) as episode:
            count = episode.count
            with np.errstate(over="ignore"):  # becomes infinite, which the writer refuses
                rewards = episode.column("rewards").astype(np.float32)
            terminal, truncated = (episode.column(name).astype(bool) for name in ("terminations", "truncations"))
            t = 0
            for observations, actions in episode.pieces():
                frames = self._pictures(observations, source)
                with naming(self.root):
                    acts = action_rows(self.space, actions, min(len(frames), count - t))
                for row, frame in enumerate(frames):
                    last = t == count
                    yield Step(
                        self.canvas.place(frame, self.root),
                        None if last else acts[row],
                        reward=float(rewards[t - 1]) if t else 0.0,
                        terminal=last and bool(terminal[-1:].any()),
                        truncated=last and bool(truncated[-1:].any()),
                    )
                    t += 1
        if t != count + 1:
            raise DataError(f"'{self.root}' {source} has {count} actions, so {count + 1} pictures are wanted, not {t}")

    @cached_property
    def _hdf5(self) -> Hdf5Reader | None:
        path = self.data / HDF5
        return Hdf5Reader(path, self.options.patience) if path.exists() else None

    def _opened(self, source: str) -> AbstractContextManager[StoredEpisode]:
        number = _number(source)
        if self._hdf5 is not None:
            return nullcontext(hdf5_episode(self._hdf5, number))
        return arrow_episode(self.data / str(number), str(self.metadata.get("data_format")), *self.spaces)

    def _pictures(self, observations: Any, source: str) -> np.ndarray:
        """Uint8 `[T, H, W, 3]`; raises `DataError` if there are none, or several and no `key` says which."""
        what = f"'{self.root}' {source}: the observations"
        if isinstance(observations, dict):
            images = [key for key, value in observations.items() if _may_be_pictures(value)]
            key = self.options.key or (images[0] if len(images) == 1 else "")
            if key not in observations:
                raise DataError(f"{what} are of {', '.join(sorted(observations))}: say which are the pictures by --key")
            observations = observations[key]
        return as_rgb(_decoded(observations, what), what)


def _number(source: str) -> int:
    return int(source.rpartition("-")[2])


def _record(space: Any) -> dict[str, Any]:
    """A space of the metadata, which Minari keeps as JSON in a string; empty where it is not written down."""
    try:
        record = json.loads(space) if isinstance(space, str) else (space or {})
    except (ValueError, RecursionError) as error:
        raise DataError(f"a space is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"a space is {record!r:.60}, not a JSON object")
    return record


def _may_be_pictures(values: Any) -> bool:
    if isinstance(values, list):
        return bool(values) and isinstance(values[0], bytes)
    return isinstance(values, np.ndarray) and (values.dtype == object or (values.dtype == np.uint8 and values.ndim > 1))


def _decoded(values: Any, what: str) -> np.ndarray:
    """Pictures that were kept as JPEG, decoded; arrays as they are."""
    packed = isinstance(values, list) or (isinstance(values, np.ndarray) and values.dtype == object)
    packed = packed or (isinstance(values, np.ndarray) and values.ndim == 2 and bytes(values[0, :2]) == b"\xff\xd8")
    if not packed:
        return np.asarray(values)
    try:
        pictures = [np.asarray(Image.open(io.BytesIO(bytes(value)))) for value in values]
        return np.stack(pictures)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, TypeError) as error:
        raise DataError(f"{what} hold a damaged picture: {error}") from error


def read_metadata(path: Path) -> dict[str, Any]:
    """Raises `DataError` if there is no dataset of Minari, or it doesn't say its action space."""
    try:
        metadata = json.loads(path.read_bytes())
        count = metadata["total_episodes"]
        if not isinstance(count, int) or not 0 <= count <= 10_000_000 or "action_space" not in metadata:
            raise ValueError(f"total_episodes is {count!r:.40}, or 'action_space' is missing")
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is not the metadata of a Minari dataset: {error}") from error
    return metadata
