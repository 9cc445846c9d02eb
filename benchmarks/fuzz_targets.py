"""What `benchmarks.fuzz_data` damages: a dataset of every codec, latents, and recordings in other formats."""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz_damage import fit_manifest
from dreamer4.data.codecs import Codec
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.importers.canvas import Canvas
from dreamer4.data.importers.importer import Options
from dreamer4.data.importers.registry import importer
from dreamer4.data.importers.sums import SourceSums
from dreamer4.data.latents import LatentDataset, finish_latents, write_latents
from dreamer4.data.validate import take_out, validate
from dreamer4.data.writer import DatasetWriter
from dreamer4.errors import DreamerError
from dreamer4.types import Episode

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # the recordings that importers are tested with
from minari_files import write_minari_dataset
from recordings import line, stamped, write_film, write_lerobot, write_sums, write_vpt
from worlds import SPACE

FRAME = (32, 32, 3)
ROWS = Options(canvas=Canvas(16, 24), name="damaged", patience=20)


@dataclass(frozen=True)
class Target:
    """`read` gives an outcome and, of an undamaged fixture (where `wanted` is None), what everything in it is."""

    make: Callable[[Path], None]
    read: Callable[[Path, Any], tuple[str, Any]]
    fit: Callable[[Path, Path], bool] | None = None


def episodes(count: int = 6) -> list[Episode]:
    """A square that moves as it is told, with rewards and events."""
    made = []
    for number in range(count):
        draw, place, length = np.random.default_rng(number), 8, 10 + 3 * number
        frames, acts = np.full((length, *FRAME), 60, np.uint8), np.zeros((length, 1), np.float32)
        for t in range(length):
            frames[t, 8:16, place : place + 8] = 200
            acts[t] = draw.integers(3)
            place = int(np.clip(place + (-4, 4, 0)[int(acts[t, 0])], 0, 24))
        known = np.arange(length) < length - 1
        events = draw.random((length, 2)) < 0.1
        events[0] = False
        reward = np.where(np.arange(length) > 0, draw.random(length), 0).astype(np.float32)
        made.append(
            Episode(
                frames, acts * known[:, None], known, reward, number % 2 == 0, number % 3 == 0, number % 2,
                f"source {number}", False, events,
            )
        )  # fmt: skip
    return made


def dataset(codec: Codec) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        with DatasetWriter(folder, "square", FRAME, SPACE, ["even", "odd"], 40, codec) as writer:
            for episode in episodes():
                writer.add(episode)
        for path in folder.glob("shard-*.json"):
            path.unlink()  # nobody reads these of a finished dataset

    return make


def digest_of(data: EpisodeDataset, number: int) -> str:
    """Of all that is read of an episode."""
    episode, digest = data.episode(number), hashlib.blake2b(digest_size=12)
    for name, value in vars(episode).items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value).tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return digest.hexdigest()


def read_dataset(folder: Path, wanted: Any) -> tuple[str, Any]:
    """By validation, then by quarantine, then as training reads it: each on its own."""
    found: list[str] = []
    failure = None
    try:
        data = EpisodeDataset.open(folder)
        found = [repr(data.manifest.recording), *(digest_of(data, number) for number in range(data.episode_count))]
    except DreamerError as error:
        failure = error
    if wanted is None:
        return "same", found
    validation = validate(folder)
    if failure is None and not validation.faults:
        return ("same" if found == wanted else "silent\nread and validated with other data"), found
    if failure is None and found != wanted and not validation.faults:
        return "silent\nread with other data", found
    try:
        take_out(folder, validation)
    except DreamerError:
        return "error", found
    left = EpisodeDataset.open(folder, verify=True)
    kept = {digest_of(left, number) for number in range(left.episode_count)}
    if not kept <= set(wanted) and not any(fault.kind in ("columns", "statistics") for fault in validation.faults):
        return "silent\nquarantine keeps other data", found
    return "reported", found


def make_latents(folder: Path) -> None:
    dataset(Codec("zstd", chunk=8))(folder / "episodes")
    data = EpisodeDataset.open(folder / "episodes")
    for index, shard in enumerate(data.manifest.shards):
        numbers = np.random.default_rng(index).normal(size=(shard.frames, 2, 6)).astype(np.float32)
        write_latents(folder / "latents", index, numbers, "model")
    finish_latents(folder / "latents", data, "model")


def read_latents(folder: Path, wanted: Any) -> tuple[str, Any]:
    try:
        data = EpisodeDataset.open(folder / "episodes")
        latents = LatentDataset.open(folder / "latents", data)
        read = hashlib.blake2b(latents.latents(0, latents.frame_count).tobytes()).hexdigest()
    except DreamerError:
        return "error", None
    return ("same" if wanted is None or read == wanted else "silent\nlatents are others"), read


def recordings(family: str) -> Callable[[Path, Any], tuple[str, Any]]:
    """As an import reads them; where `SHA256SUMS` lies beside them, other data is `silent`, else `import`."""

    def read(folder: Path, wanted: Any) -> tuple[str, Any]:
        digest = hashlib.blake2b()
        try:
            reader, sums = importer(family, folder, ROWS), SourceSums(folder)
            digest.update(repr(reader.recording).encode())
            for source in reader.sources():
                sums.verify(reader.files(source))
                for episode in reader.episodes(source):
                    for part in episode.parts:
                        rows = {len(part.frames_THWC), len(part.act_out_TA), len(part.act_known_T), len(part.reward_T)}
                        if rows != {part.length} or part.frames_THWC.shape[1:] != (16, 24, 3):
                            return "silent\nrows don't fit frames", None
                        for value in (part.frames_THWC, part.act_out_TA, part.reward_T):
                            digest.update(np.ascontiguousarray(value).tobytes())
        except DreamerError:
            return "error", None
        found = digest.hexdigest()
        if wanted is None or found == wanted:
            return "same", found
        return ("import" if sums.wanted is None else "silent\nimported with other data than its sums are of"), found

    return read


def with_sums(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """The same recordings with what `sha256sum` says of them."""

    def made(folder: Path) -> None:
        make(folder)
        write_sums(folder)

    return made


def make_vpt(folder: Path) -> None:
    write_vpt(folder, [line(t, isGuiOpen=t % 2 == 0) for t in range(12)], name="a")


def make_films(folder: Path) -> None:
    write_film(folder / "a.mp4", (stamped(t) for t in range(12)))


def make_minari(folder: Path) -> None:
    write_minari_dataset(folder, "hdf5", jpeg=False, lengths=(5, 3))


def _targets() -> dict[str, Target]:
    codecs = {"raw": Codec(chunk=8), "zstd": Codec("zstd", chunk=8), "h264": Codec("h264", chunk=8)}
    found = {f"dataset {name}": Target(dataset(codec), read_dataset, fit_manifest) for name, codec in codecs.items()}
    found["latents"] = Target(make_latents, read_latents)
    families: dict[str, tuple[Callable[[Path], Any], str]] = {
        "vpt mp4 + jsonl": (make_vpt, "vpt"),
        "mp4": (make_films, "video"),
        "lerobot": (lambda folder: write_lerobot(folder, (6, 4)), "lerobot"),
        "minari hdf5": (make_minari, "minari"),
    }
    found |= {name: Target(make, recordings(family)) for name, (make, family) in families.items()}
    return found | {
        f"{name} with sums": Target(with_sums(make), recordings(family)) for name, (make, family) in families.items()
    }


TARGETS = _targets()
