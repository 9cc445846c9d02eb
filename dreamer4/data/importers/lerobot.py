"""LeRobot v3 datasets: Parquet for numbers, films per camera, several episodes in each file.

`action` in row t is chosen at frame t. `next.reward` and `next.done` of row t are about the frame after it; of the last
row that frame was not recorded, so its reward is added to the last frame's, and its `next.done` makes that terminal
(docs/importing.md).
"""

import io
import json
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from PIL import Image, UnidentifiedImageError

from dreamer4.actions import ActionSpace, Part
from dreamer4.data.importers.canvas import Canvas, as_rgb
from dreamer4.data.importers.film import frames_between
from dreamer4.data.importers.importer import Importer, Options, refuse_rate, without
from dreamer4.data.importers.steps import Recorded, Step, episodes_of
from dreamer4.data.schema import Recording
from dreamer4.errors import DataError

DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
PATTERN = r"[^{}]*(\{\w+(:0?\d{1,2}d)?\}[^{}]*)*"
LONGEST = 10_000_000  # rows of an episode
WIDEST = 10_000  # numbers of an action


class LeRobotImporter(Importer):
    """The folder of a dataset, with `meta/info.json`. `key` names the camera, such as `observation.images.front`."""

    per_shard = 16

    def __init__(self, root: Path, options: Options):
        super().__init__(root, options)
        refuse_rate(options, "LeRobot")
        self.info = read_info(self.root / "meta" / "info.json")
        self.features: dict[str, Any] = self.info["features"]
        cameras = [name for name, kind in self.features.items() if kind.get("dtype") in ("video", "image")]
        camera = options.key or (cameras[0] if len(cameras) == 1 else "")
        if camera not in cameras:
            raise DataError(f"'{root}' has cameras {', '.join(cameras) or 'none'}: choose one by --key")
        self.camera, self.filmed = camera, self.features[camera]["dtype"] == "video"
        if "action" not in self.features:
            raise DataError(f"'{root}' has no feature 'action': import its films by `data import video`")
        shape = self.features["action"].get("shape")
        sizes = shape if isinstance(shape, list) and all(isinstance(size, int) and size > 0 for size in shape) else [0]
        self.width = math.prod(sizes)
        if not 0 < self.width <= WIDEST:
            raise DataError(f"'{self.root / 'meta' / 'info.json'}' gives actions the shape {shape!r:.60}")

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        path = self.root / "meta" / "tasks.parquet"
        table = read_parquet(path)
        name = next((c for c in ("task", "__index_level_0__") if c in table.column_names), None)
        if name is None or "task_index" not in table.column_names or not table.num_rows:
            raise DataError(f"'{path}' has columns {table.column_names}, 'task' and 'task_index' are wanted")
        named = dict(zip(table["task_index"].to_pylist(), table[name].to_pylist(), strict=True))
        if sorted(named) != list(range(len(named))):
            raise DataError(f"'{path}' numbers its tasks {sorted(named)[:10]}, not from 0 on")
        return tuple(str(named[index]) for index in range(len(named)))

    @cached_property
    def canvas(self) -> Canvas:
        if self.options.canvas is not None:
            return self.options.canvas
        height, width, _ = next(self._frames(self._entry(self.sources()[0]))).shape
        return Canvas(height, width, "exact")

    @property
    def recording(self) -> Recording:
        name = self.options.name or self.info.get("robot_type") or self.root.name
        actions = ActionSpace((Part("action", "continuous", self.width),))
        return Recording(name, self.canvas.shape, actions, self.tasks)

    @cached_property
    def _entries(self) -> dict[str, dict[str, Any]]:
        """What `meta/episodes` says of every episode, by source name."""
        wanted = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        if self.filmed:
            wanted += [f"videos/{self.camera}/{field}" for field in ("chunk_index", "file_index", "from_timestamp")]
        found = {}
        for path in self._listings():
            for entry in read_parquet(path, wanted).to_pylist():
                if None in entry.values() or not 1 <= entry["length"] <= LONGEST:
                    raise DataError(f"'{path}' has an impossible entry for episode {entry['episode_index']}: {entry}")
                found[f"episode-{entry['episode_index']:06d}"] = entry
        return found

    def _listings(self) -> list[Path]:
        return sorted((self.root / "meta" / "episodes").rglob("*.parquet"))

    def sources(self) -> list[str]:
        names = without(list(self._entries), self.options.exclude)
        if not names:
            raise DataError(f"'{self.root / 'meta' / 'episodes'}' names no episode")
        return names

    def files(self, source: str) -> list[Path]:
        entry = self._entry(source)
        films = [self._path("video_path", VIDEO, entry, f"videos/{self.camera}")] if self.filmed else []
        described = [self.root / "meta" / "info.json", self.root / "meta" / "tasks.parquet", *self._listings()]
        return [*described, self._path("data_path", DATA, entry, "data"), *films]

    def episodes(self, source: str) -> Iterator[Recorded]:
        entry = self._entry(source)
        rows = self._rows(entry)
        task = rows["task_index"][0].as_py() if "task_index" in rows.column_names else 0
        return episodes_of(self._steps(entry, rows), source, self.width, task)

    def _entry(self, source: str) -> dict[str, Any]:
        if source not in self._entries:
            raise DataError(f"'{self.root}' has no {source}")
        return self._entries[source]

    def _steps(self, entry: dict[str, Any], rows: pa.Table) -> Iterator[Step]:
        count = rows.num_rows
        acts = np.array(rows["action"].to_pylist(), np.float32).reshape(count, -1)
        if acts.shape[1] != self.width:
            raise DataError(f"episode {entry['episode_index']} of '{self.root}' has actions of {acts.shape[1]} values")

        def column(name: str) -> np.ndarray:
            given = name in rows.column_names
            return np.array(rows[name].to_pylist(), np.float64).reshape(count) if given else np.zeros(count)

        reward, done = column("next.reward"), column("next.done")
        success = bool(column("next.success").any())
        arriving = np.append([0.0], reward[:-1])
        if count > 1:
            arriving[-1] += reward[-1]
        frames = 0
        for t, frame in enumerate(islice(self._frames(entry, rows), count)):
            frames, last = frames + 1, t == count - 1
            yield Step(
                self.canvas.place(frame, self.root),
                acts[t],
                reward=float(arriving[t]),
                terminal=last and bool(done[-1]),
                success=last and success,
            )
        if frames < count:
            raise DataError(f"episode {entry['episode_index']} of '{self.root}' has {count} rows and {frames} frames")

    def _rows(self, entry: dict[str, Any]) -> pa.Table:
        """The rows of an episode without pictures of other cameras; raises `DataError` if they are not all there."""
        path = self._path("data_path", DATA, entry, "data")
        wanted = ["action", "episode_index", "task_index", "next.reward", "next.done", "next.success", "frame_index"]
        wanted = [name for name in wanted if name in self.features] + ([] if self.filmed else [self.camera])
        episode, length = entry["episode_index"], entry["length"]
        rows = read_parquet(path, wanted, pc.field("episode_index") == episode)
        if rows.num_rows != length:
            raise DataError(f"'{path}' has {rows.num_rows} rows of episode {episode}, {length} are promised")
        if "frame_index" in rows.column_names and rows["frame_index"].to_pylist() != list(range(length)):
            raise DataError(f"'{path}' doesn't have the frames of episode {episode} in order")
        return rows

    def _frames(self, entry: dict[str, Any], rows: pa.Table | None = None) -> Iterator[np.ndarray]:
        if self.filmed:
            place = f"videos/{self.camera}"
            path = self._path("video_path", VIDEO, entry, place)
            yield from frames_between(path, float(entry[f"{place}/from_timestamp"]), entry["length"])
            return
        column = (self._rows(entry) if rows is None else rows)[self.camera]
        for row, value in enumerate(column):
            yield _picture(value.as_py(), f"'{self.root}' episode {entry['episode_index']} row {row}: the picture")

    def _path(self, name: str, usual: str, entry: dict[str, Any], place: str) -> Path:
        chunk, number = entry[f"{place}/chunk_index"], entry[f"{place}/file_index"]
        pattern = self.info.get(name) or usual
        try:
            if not re.fullmatch(PATTERN, pattern):  # a width of a thousand million would be filled
                raise ValueError("numbers have at most 99 digits")
            path = pattern.format(video_key=self.camera, chunk_index=chunk, file_index=number)
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            raise DataError(f"'{self.root / 'meta' / 'info.json'}': '{name}' is {pattern!r}: {error}") from error
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise DataError(f"'{self.root / 'meta' / 'info.json'}': '{name}' leads out of the dataset: {path}")
        return self.root / path


def _picture(value: Any, what: str) -> np.ndarray:
    try:
        picture = np.asarray(Image.open(io.BytesIO(value["bytes"])))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, TypeError, KeyError, ValueError) as error:
        raise DataError(f"{what} is damaged: {error}") from error
    return as_rgb(picture[None], what)[0]


def read_parquet(path: Path, columns: list[str] | None = None, rows: pc.Expression | None = None) -> pa.Table:
    """Raises `DataError`, naming the file, if it is missing or damaged, or lacks a column."""
    try:
        table = pyarrow.parquet.read_table(path, columns=columns, filters=rows)
        table.validate(full=True)
        table.column_names  # noqa: B018 - decodes them: they may be no text
        return table
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DataError(f"'{path}' is missing, damaged or lacks a column: {error}") from error


def read_info(path: Path) -> dict[str, Any]:
    """Raises `DataError` if there is no dataset of LeRobot v3."""
    try:
        info = json.loads(path.read_bytes())
        version, rate = str(info["codebase_version"]), Fraction(info["fps"])
        features = info["features"]
        if not isinstance(features, dict) or not all(isinstance(kind, dict) for kind in features.values()) or rate <= 0:
            raise ValueError("'features' or 'fps' can't be used")
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is not the description of a LeRobot dataset: {error}") from error
    if not version.startswith("v3"):
        raise DataError(f"'{path}' is of LeRobot {version}; v3 is read: convert it with LeRobot's own converter")
    return info
