"""Datasets and latents on other file systems, each a real one on loopback or in memory."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import fsspec
import numpy as np
import pytest
from http_files import FileServer, file_server
from states import assert_equal
from worlds import FRAME, SPACE, make_world, walk

from dreamer4.data.clips import ClipSampler
from dreamer4.data.codecs import Codec
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.latents import LatentDataset
from dreamer4.data.storage import Recent, folder_at
from dreamer4.data.writer import DatasetWriter
from dreamer4.errors import DataError, RunError

Place = Callable[[str], str]  # of a folder by its name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`episodes` and `latents` of them, and `packed`, one large shard of zstd."""
    root = tmp_path_factory.mktemp("remote")
    make_world(root)
    with DatasetWriter(root / "packed", "walk", FRAME, SPACE, ["even", "odd"], codec=Codec("zstd")) as writer:
        for index in range(400):
            writer.add(walk(index))
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[FileServer]:
    with file_server(folder) as running:
        yield running


@pytest.fixture(params=["http", "s3", "memory", "file"])
def place(request: pytest.FixtureRequest, folder: Path, server: FileServer) -> Place:
    def memory(name: str) -> str:
        files = fsspec.filesystem("memory")
        for path in (folder / name).iterdir():
            files.pipe_file(f"/{name}/{path.name}", path.read_bytes())
        return f"memory://{name}"

    places: dict[str, Place] = {
        "http": lambda name: f"http://{server.address}/{name}",
        # pyarrow's own client; the server doesn't look at the signature.
        "s3": lambda name: f"s3://user:word@{name}/?endpoint_override={server.address}&scheme=http&region=here",
        "memory": memory,
        "file": lambda name: (folder / name).as_uri(),
    }
    return places[request.param]


def test_clips_are_those_of_the_folder(place, folder):
    here, there = EpisodeDataset.open(folder / "episodes"), EpisodeDataset.open(place("episodes"), verify=True)
    assert there.manifest == here.manifest
    for step in range(3):
        assert_equal(
            vars(ClipSampler(there, seed=1).batch(step, 4, 9)), vars(ClipSampler(here, seed=1).batch(step, 4, 9))
        )


def test_latents_are_those_of_the_folder(place, folder):
    data = EpisodeDataset.open(folder / "episodes")
    here, there = LatentDataset.open(folder / "latents", data), LatentDataset.open(place("latents"), data)
    assert np.array_equal(there.latents(30, 95), here.latents(30, 95))


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_a_clip_is_read_without_the_rest_of_its_file(scheme, folder, server):
    urls = {
        "http": f"http://{server.address}/packed",
        "s3": f"s3://user:word@packed/?endpoint_override={server.address}&scheme=http&region=here",
    }
    data = EpisodeDataset.open(urls[scheme])
    server.served.clear()
    ClipSampler(data).batch(0, 1, 12)
    whole = (folder / "packed" / "shard-00000.arrow").stat().st_size
    assert list(server.served) == ["shard-00000.arrow"] and server.served["shard-00000.arrow"] < whole / 3
    folder_at(urls[scheme]).read("shard-00000.arrow")  # negative control: the count sees a whole file
    assert server.served["shard-00000.arrow"] > whole


def test_what_can_not_be_reached_or_is_not_there_is_named(server, folder, tmp_path):
    data = EpisodeDataset.open(folder / "episodes")
    for url in (f"http://{server.address}/nowhere", "memory://nowhere", (tmp_path / "nowhere").as_uri()):
        with pytest.raises(DataError, match=r"nowhere' holds no finished dataset"):
            EpisodeDataset.open(url)
        with pytest.raises(DataError, match=r"nowhere' holds no finished dataset"):
            LatentDataset.open(url, data)
    for url in ("nosuch://bucket/data", "http://127.0.0.1:9/data"):
        with pytest.raises(DataError, match=r"can't (use|read)"):
            EpisodeDataset.open(url)
    with pytest.raises(RunError, match="write it to a disk"):
        DatasetWriter("s3://bucket/data", "walk", FRAME, SPACE, ["only"])  # type: ignore[arg-type]


def test_a_file_that_is_cut_while_it_is_open_is_an_error_and_not_the_end(folder, tmp_path):
    """A memory map would end the process."""
    shutil.copytree(folder / "packed", tmp_path / "packed")
    data = EpisodeDataset.open(tmp_path / "packed")
    data.episode(0)
    with open(tmp_path / "packed" / "shard-00000.arrow", "r+b") as file:
        file.truncate(4096)
    with pytest.raises(DataError, match=r"shard-00000\.arrow' ends .* it was cut"):
        data.episode(data.episode_count - 1)


def test_recent_values_are_kept_and_old_ones_let_go():
    made: list[int] = []
    recent = Recent[int](2)

    def get(key: int) -> int:
        return recent.get(key, lambda: made.append(key) or key)

    assert [get(key) for key in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert made == [1, 2, 3, 2]
    threads = [Thread(target=lambda: [get(key % 5) for key in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert get(2) == 2
