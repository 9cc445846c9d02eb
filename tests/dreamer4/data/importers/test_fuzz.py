"""Damaged recordings of every kind end in a `DataError` that names a file, or in whole episodes; nothing else."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from counter_env import play_counter
from minari_files import write_minari_dataset
from recordings import line, stamped, write_film, write_lerobot, write_vpt

from dreamer4.data.importers.canvas import Canvas
from dreamer4.data.importers.importer import Options
from dreamer4.data.importers.registry import importer
from dreamer4.errors import DataError

ROUNDS = 40  # per family
OPTIONS = Options(canvas=Canvas(16, 24), patience=2)


def damage(data: bytes, random: np.random.Generator) -> bytes:
    """Flipped bits, a cut, a hole, zeros, doubled bytes, or digits that make sizes absurd."""
    kind, at = random.integers(6), int(random.integers(max(1, len(data))))
    if kind == 0:
        flipped = np.frombuffer(data, np.uint8).copy()
        flipped[random.integers(len(data), size=4)] ^= np.uint8(1 << random.integers(8))
        return flipped.tobytes()
    some = int(random.integers(1, 64))
    changed = [data[:at], data[:at] + data[at + some :], data[:at] + bytes(some) + data[at + some :]]
    changed += [data[: at + some] + data[at:], data.replace(b"1", b"999999999999", int(random.integers(1, 3)))]
    return changed[kind - 1]


def read_all(family: str, root: Path) -> None:
    """Every episode; what is given has to be whole."""
    reader = importer(family, root, OPTIONS)
    reader.recording.to_json()
    for source in reader.sources()[:8]:
        for episode in reader.episodes(source):
            ends = 0
            for part in episode.parts:
                rows = {len(part.frames_THWC), len(part.act_out_TA), len(part.act_known_T), len(part.reward_T)}
                assert rows == {part.length}
                assert part.frames_THWC.shape[1:] == (16, 24, 3)
                ends += part.end is not None
            assert ends == 1


def write_vpt_pair(root: Path) -> None:
    write_vpt(root, [line(t, isGuiOpen=t % 2 == 0) for t in range(12)], name="a")


def write_films(root: Path) -> None:
    write_film(root / "a.mp4", (stamped(t) for t in range(12)))


def write_minari(form: str) -> Callable[[Path], object]:
    return lambda root: write_minari_dataset(root, form, jpeg=False, lengths=(5, 3))


MAKERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "vpt": ("vpt", write_vpt_pair),
    "video": ("video", write_films),
    "lerobot": ("lerobot", lambda root: write_lerobot(root, (6, 4))),
    "gymnasium": ("gymnasium", play_counter),
    "minari": ("minari", write_minari("arrow")),
    "minari hdf5": ("minari", write_minari("hdf5")),
}


def fuzz(name: str, folder: Path, rounds: int, seed: int = 0) -> int:
    """How many of the damages were noticed; raises what should not happen."""
    family, make = MAKERS[name]
    make(folder / "whole")
    read_all(family, folder / "whole")
    files = sorted(path.relative_to(folder / "whole") for path in (folder / "whole").rglob("*") if path.is_file())
    noticed = 0
    for number in range(rounds):
        random = np.random.default_rng((seed, number))
        broken = folder / "broken"
        shutil.copytree(folder / "whole", broken)
        victim = broken / files[number % len(files)]
        victim.write_bytes(damage(victim.read_bytes(), random))
        try:
            read_all(family, broken)
        except DataError as error:
            noticed += 1
            assert str(broken) in str(error), f"round {number}, {victim}: {error}"
        except Exception as error:
            raise AssertionError(f"round {number} of {name}, {victim.name}: {error!r}") from error
        finally:
            shutil.rmtree(broken)
    return noticed


@pytest.mark.parametrize("name", MAKERS)
def test_damaged_recordings_are_errors_or_whole(tmp_path, name):
    rounds = ROUNDS // 5 if "hdf5" in name else ROUNDS  # every round starts a process to read HDF5 in
    assert fuzz(name, tmp_path, rounds) > rounds // 5
