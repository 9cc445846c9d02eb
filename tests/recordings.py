"""Recordings in other people's formats, made here with the quirks of the real ones. Nothing is copied from them."""

import io
import json
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dreamer4.data.importers.importer import Importer
from dreamer4.data.importers.sums import NAME
from dreamer4.types import Episode

BITS = 10  # of a frame's number, drawn as black and white squares that survive any codec


def stamped(number: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A frame that shows its number, uint8 `[H, W, 3]`."""
    frame = np.full((height, width, 3), 90, np.uint8)
    side = width // BITS
    for bit in range(BITS):
        frame[:side, bit * side : (bit + 1) * side] = 255 if number >> bit & 1 else 0
    return frame


def stamp_of(frame: np.ndarray) -> int:
    """The number that a frame shows."""
    side = frame.shape[1] // BITS
    middle = side // 2
    return sum(1 << bit for bit in range(BITS) if frame[middle, bit * side + middle].mean() > 127)


def write_film(path: Path, frames: Iterable[np.ndarray], rate: int = 20, codec: str = "libx264") -> Path:
    """`codec` "libx264rgb" keeps every pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = None
        for frame in frames:
            if stream is None:
                options = {"crf": "0", "preset": "ultrafast"} if codec == "libx264rgb" else {"crf": "12", "g": "30"}
                stream = container.add_stream(codec, rate=rate, options=options)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "rgb24" if codec == "libx264rgb" else "yuv420p"
                stream.time_base = Fraction(1, rate)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path


def mouse(**changes: Any) -> dict[str, Any]:
    usual = {"x": 640.0, "y": 360.0, "dx": 0.0, "dy": 0.0, "scaledX": 0.0, "scaledY": 0.0, "dwheel": 0.0}
    return {**usual, "buttons": [], "newButtons": [], **changes}


def line(number: int, **changes: Any) -> dict[str, Any]:
    """One line of a VPT recording at tick `number`; `keys` is short for the keyboard's."""
    keys = changes.pop("keys", [])
    return {
        "mouse": mouse(),
        "keyboard": {"keys": keys, "newKeys": [], "chars": ""},
        "isGuiOpen": False,
        "isGuiInventory": False,
        "hotbar": 0,
        "yaw": 0.0,
        "pitch": 0.0,
        "xpos": 0.5,
        "ypos": 64.0,
        "zpos": 0.5,
        "tick": number,
        "milli": 1_600_000_000_000 + 50 * number,
        "inventory": [],
        "serverTick": 1000 + number,
        "stats": {"minecraft.custom:minecraft.play_one_minute": number},
        **changes,
    }


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return path


def write_vpt(
    folder: Path,
    lines: Sequence[dict[str, Any]],
    name: str = "player-abc-20220421-092639",
    frames: Sequence[np.ndarray] | None = None,
    extra: int = 1,
) -> Path:
    """A pair of film and lines, by default with frames that show their number; gives the path of the film.

    Args:
        extra: how often the last frame is written once more, as the recorder does at a normal end.
    """
    shown = [stamped(number) for number in range(len(lines))] if frames is None else list(frames)
    write_lines(folder / f"{name}.jsonl", lines)
    (folder / f"{name}-options.json").write_text("{}")
    return write_film(folder / f"{name}.mp4", [*shown, *[shown[-1]] * extra])


def write_sums(folder: Path) -> Path:
    """`SHA256SUMS` of all files in a folder and below, as people make it."""
    program = shutil.which("sha256sum")
    assert program is not None
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    done = subprocess.run([program, *names], cwd=folder, capture_output=True, text=True, check=True)
    (folder / NAME).write_text(done.stdout)
    return folder / NAME


def write_index(path: Path, names: Sequence[str], basedir: str = "https://example.invalid/minecraft/") -> Path:
    path.write_text(json.dumps({"basedir": basedir, "relpaths": [f"{name}.mp4" for name in names]}))
    return path


@dataclass
class Slider:
    """A game whose picture moves one frame after its key, as every recording's does (R1)."""

    position: int = 8
    frames: list[np.ndarray] = field(default_factory=list)

    def play(self, presses: Sequence[bool]) -> list[dict[str, Any]]:
        """The lines of a game with the forward key pressed at these ticks; the frames are kept."""
        lines = []
        for number, pressed in enumerate(presses):
            frame = np.full((64, 96, 3), 30, np.uint8)
            frame[:, self.position : self.position + 8] = 220
            self.frames.append(frame)  # what the player sees as the key goes down
            lines.append(line(number, keys=["key.keyboard.w"] if pressed else []))
            self.position = (self.position + 8) % 88 if pressed else self.position
        return lines


def moved(frames_THWC: np.ndarray) -> np.ndarray:
    """Bool `[T - 1]`: whether the slider has moved between frames t and t + 1."""
    return np.abs(np.diff(frames_THWC.astype(np.float32), axis=0)).mean(axis=(1, 2, 3)) > 5


def write_lerobot(
    root: Path,
    lengths: Sequence[int],
    per_file: int = 2,
    rate: int = 10,
    filmed: bool = True,
    codec: str = "libx264",
) -> list[np.ndarray]:
    """A LeRobot v3 dataset with `per_file` episodes in each film and Parquet file; gives the actions of the episodes.

    Frame t of episode e shows 64 e + t; of two tasks, odd episodes have the second one.
    """
    random, camera = np.random.default_rng(5), "observation.images.front"
    acts, entries, origin = [], [], 0
    for number, first in enumerate(range(0, len(lengths), per_file)):
        rows: dict[str, list[Any]] = {
            key: []
            for key in ("action", "episode_index", "frame_index", "timestamp", "task_index", "index", "next.reward")
        }
        rows |= {"next.done": [], "next.success": []}
        frames: list[np.ndarray] = []
        for episode in range(first, min(first + per_file, len(lengths))):
            length = lengths[episode]
            acts.append(random.normal(size=(length, 3)).astype(np.float32))
            entries.append(
                {
                    "episode_index": episode,
                    "length": length,
                    "tasks": ["push"],
                    "data/chunk_index": 0,
                    "data/file_index": number,
                    "dataset_from_index": origin,
                    "dataset_to_index": origin + length,
                    f"videos/{camera}/chunk_index": 0,
                    f"videos/{camera}/file_index": number,
                    f"videos/{camera}/from_timestamp": len(frames) / rate,
                    f"videos/{camera}/to_timestamp": (len(frames) + length) / rate,
                }
            )
            rows["action"] += acts[-1].tolist()
            rows["episode_index"] += [episode] * length
            rows["frame_index"] += list(range(length))
            rows["timestamp"] += [t / rate for t in range(length)]
            rows["task_index"] += [episode % 2] * length
            rows["index"] += list(range(origin, origin + length))
            rows["next.reward"] += [0.25] + [0.0] * (length - 2) + [1.0]
            rows["next.done"] += [False] * (length - 1) + [True]
            rows["next.success"] += [False] * (length - 1) + [episode % 2 == 0]
            frames += [stamped(64 * episode + t) for t in range(length)]
            origin += length
        if filmed:
            write_film(root / "videos" / camera / "chunk-000" / f"file-{number:03d}.mp4", frames, rate, codec)
        else:
            rows[camera] = [{"bytes": _png(frame), "path": None} for frame in frames]
        table = pa.table({**rows, "action": pa.array(rows["action"], pa.list_(pa.float32(), 3))})
        (root / "data" / "chunk-000").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / "data" / "chunk-000" / f"file-{number:03d}.parquet")
    (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(entries), root / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    pq.write_table(
        pa.table({"task_index": [0, 1], "__index_level_0__": ["push", "pull"]}), root / "meta" / "tasks.parquet"
    )
    picture = {"dtype": "video" if filmed else "image", "shape": [64, 96, 3]}
    numbers = {"dtype": "float32", "shape": [1]}
    features = {camera: picture, "action": {"dtype": "float32", "shape": [3], "names": ["x", "y", "grip"]}}
    features |= {name: numbers for name in rows if name not in features}
    write_info(root, {"codebase_version": "v3.0", "fps": rate, "robot_type": "arm", "features": features})
    return acts


def write_info(root: Path, info: dict[str, Any]) -> None:
    paths = {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    (root / "meta" / "info.json").write_text(json.dumps({**paths, **info}))


def _png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def imported(importer: Importer, source: str) -> list[Episode]:
    """The episodes of a source as whole arrays."""
    episodes = []
    for recorded in importer.episodes(source):
        parts = list(recorded.parts)
        end = parts[-1].end
        assert end is not None
        assert all(part.end is None for part in parts[:-1])
        events = None if parts[0].events_TK is None else np.concatenate([part.events_TK for part in parts])
        episodes.append(
            Episode(
                frames_THWC=np.concatenate([part.frames_THWC for part in parts]),
                act_out_TA=np.concatenate([part.act_out_TA for part in parts]),
                act_known_T=np.concatenate([part.act_known_T for part in parts]),
                reward_T=np.concatenate([part.reward_T for part in parts]),
                terminal=end.terminal,
                success=end.success,
                task=recorded.task,
                source=recorded.source,
                truncated=end.truncated,
                events_TK=events,
            )
        )
    return episodes


def stamps(frames_THWC: np.ndarray) -> list[int]:
    """The numbers that frames show."""
    return [stamp_of(frame) for frame in frames_THWC]
