"""`dreamer4 bench data`: random clips of 64 frames, ours beside what else recordings are kept in; all in one run.

Readers take turns and CPU seconds count, so neither the disk nor other processes do. Ours gives actions, rewards and
masks as well; the others only frames. A tar file gives its clips in the order of the file, ours are anywhere.
"""

import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from cluster.bench.readers import CRF, LENGTH, Draw, lerobot_film, panning, pixel_art, plain_mp4, tar_stream
from dreamer4.actions import ActionSpace
from dreamer4.data.clips import ClipSampler
from dreamer4.data.codecs import Codec
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.schema import MANIFEST, Manifest
from dreamer4.data.storage import LocalFolder
from dreamer4.data.writer import DatasetWriter
from dreamer4.errors import ConfigError
from dreamer4.files import write_json
from dreamer4.types import Episode

TURNS = 5
SECONDS = 1.0  # of a turn
FRAMES = {"64": 6400, "360": 1280}  # of the recordings
EQUIVALENT = 200 * 10**9  # bytes of the dataset that memory is measured on
BATCHES = 100  # of 16 clips, that are drawn from it


def bench_data(
    turns: int = TURNS, seconds: float = SECONDS, equivalent: int = EQUIVALENT, batches: int = BATCHES
) -> dict[str, Any]:
    """Everything in one run on this machine.

    Raises:
        ConfigError: PyAV isn't installed.
    """
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise ConfigError("bench data compares with films and needs PyAV: pip install 'dreamer4-ray[video]'") from error
    torch.set_num_threads(1)
    record: dict[str, Any] = {"crf": CRF, "length": LENGTH, "turns": turns}
    with TemporaryDirectory(prefix="dreamer4-bench-") as name:
        for size, video in (("64", pixel_art(FRAMES["64"])), ("360", panning(FRAMES["360"]))):
            folder = Path(name) / size
            folder.mkdir()
            draws, sizes = readers(folder, size, video)
            rates = clips_per_core_s(draws, turns, seconds)
            record |= summary(size, rates, sizes)
            print_table(size, rates, sizes, record)
        for kind in ("raw", "zstd"):
            folder = Path(name) / f"large-{kind}"
            write_ours(folder, pixel_art(FRAMES["64"]), Codec(kind), times=1 if kind == "raw" else 16)
            frames = repeat_shards(folder, equivalent)
            record[f"peak_rss_mb_{kind}"], record[f"peak_frames_{kind}"] = peak_rss_mb(folder, batches), frames
            shown = f"{equivalent / 1e9:g} GB of {kind}, {frames / 1e6:.0f} M frames"
            print(f"peak memory of a reader of {shown}: {record[f'peak_rss_mb_{kind}']:.0f} MB", flush=True)
    record["peak_rss_mb"] = max(record["peak_rss_mb_raw"], record["peak_rss_mb_zstd"])
    return record


def readers(folder: Path, size: str, video: np.ndarray) -> tuple[dict[str, Draw], dict[str, int]]:
    """Every reader of one video, and the bytes that it is kept in."""
    kinds = ("raw", "zstd") if size == "64" else ("h264",)
    draws = {}
    for kind in kinds:
        clips = write_ours(folder / f"ours-{kind}", video, Codec(kind, crf=CRF))
        draws[f"ours, {kind}"] = ours(clips, batch=16 if size == "64" else 2)
        if not clips.dataset.manifest.recording.codec.lossless:
            print(f"ours, {kind}: {clips.dataset.manifest.statistics['psnr_db']:.1f} dB", flush=True)
    files = {"mp4, PyAV": folder / "film.mp4", "tar of mp4": folder / "mp4.tar", "tar of npy": folder / "npy.tar"}
    draws["mp4, PyAV"] = plain_mp4(files["mp4, PyAV"], video)
    draws["tar of mp4"] = tar_stream(files["tar of mp4"], video, "mp4")
    draws["tar of npy"] = tar_stream(files["tar of npy"], video, "npy")
    sizes = {name: path.stat().st_size for name, path in files.items()}
    sizes |= {
        f"ours, {kind}": sum(file.stat().st_size for file in (folder / f"ours-{kind}").iterdir()) for kind in kinds
    }
    if (lerobot := lerobot_film(files["mp4, PyAV"], video)) is not None:
        draws["LeRobot, pyav"], sizes["LeRobot, pyav"] = lerobot, sizes["mp4, PyAV"]
    return draws, sizes


def write_ours(folder: Path, video: np.ndarray, codec: Codec, episode: int = 1600, times: int = 1) -> ClipSampler:
    """The video, so many times, as episodes with made-up actions, in one shard."""
    actions, frames = ActionSpace.discrete(16), len(video)
    with DatasetWriter(folder, "bench", video.shape[1:], actions, ["only"], frames * times, codec) as writer:
        for start in [*range(0, frames, episode)] * times:
            part = video[start : start + episode]
            known, reward = np.arange(len(part)) < len(part) - 1, np.zeros(len(part), np.float32)
            act_out = np.random.default_rng(start).integers(16, size=(len(part), 1)).astype(np.float32)
            writer.add(Episode(part, act_out, known, reward, terminal=True))
    return ClipSampler(EpisodeDataset.open(folder))


def ours(clips: ClipSampler, batch: int) -> Draw:
    steps = iter(range(1 << 30))

    def draw() -> torch.Tensor:
        video = clips.batch(next(steps), batch, LENGTH).video_BTHWC
        assert video is not None
        return video

    return draw


def summary(size: str, rates: dict[str, float], sizes: dict[str, int]) -> dict[str, Any]:
    """Ours is the fastest of our ways to keep such frames, and so is the alternative."""
    own = {name: rate for name, rate in rates.items() if name.startswith("ours")}
    others = {name: rate for name, rate in rates.items() if name not in own}
    return {
        f"clips_per_core_s_{size}": max(own.values()),
        f"over_fastest_alternative_{size}": max(own.values()) / max(others.values()),
        f"fastest_alternative_{size}": max(others, key=lambda name: others[name]),
        f"readers_{size}": {name: {"clips_per_core_s": rate, "bytes": sizes[name]} for name, rate in rates.items()},
    }


def print_table(size: str, rates: dict[str, float], sizes: dict[str, int], record: dict[str, Any]) -> None:
    per_hour = 20 * 3600 / FRAMES[size] / 1e6  # MB of an hour at 20 frames/s from bytes of the recording
    print(f"\n{'frames of ' + size:16} clips per core-s     MB per hour")
    for name, rate in rates.items():
        print(f"{name:16} {rate:15.1f} {sizes[name] * per_hour:15.0f}")
    over, other = record[f"over_fastest_alternative_{size}"], record[f"fastest_alternative_{size}"]
    print(f"ours over the fastest alternative ({other}): {over:.2f}", flush=True)


def clips_per_core_s(draws: dict[str, Draw], turns: int, seconds: float) -> dict[str, float]:
    """Median over turns that the readers take one after the other."""
    rates: dict[str, list[float]] = {name: [] for name in draws}
    for draw in draws.values():
        draw()
    for _ in range(turns):
        for name, draw in draws.items():
            begin, count = time.process_time(), 0
            while (spent := time.process_time() - begin) < seconds or not count:
                count += len(draw())
            rates[name].append(count / spent)
    return {name: median(values) for name, values in rates.items()}


def repeat_shards(folder: Path, size: int) -> int:
    """Makes a dataset say that its only shard follows itself until it is `size` bytes; returns its frames."""
    manifest = Manifest.read(LocalFolder(folder))
    (shard,) = manifest.shards
    shards = tuple(replace(shard, first_episode=i * shard.episodes) for i in range(-(-size // shard.bytes)))
    large = Manifest(manifest.recording, shards)
    write_json(folder / MANIFEST, large.to_json())
    return large.frames


MEASURE = """
import sys
from cluster.bench.data import peak_mb
from dreamer4.data.clips import ClipSampler
from dreamer4.data.episodes import EpisodeDataset
clips = ClipSampler(EpisodeDataset.open(sys.argv[1]))
for step in range(int(sys.argv[2])):
    clips.batch(step, 16, 64)
print(peak_mb())
"""


def peak_mb() -> float:
    """Of this process. `ru_maxrss` would count what the parent had when it forked, so Linux is asked otherwise."""
    status = Path("/proc/self/status")
    if status.exists():
        return float(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peak_rss_mb(folder: Path, batches: int) -> float:
    """Of a fresh process that opens the dataset and draws batches of 16 clips."""
    command = [sys.executable, "-c", MEASURE, str(folder), str(batches)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
