"""Episodes that come in parts, as hours of video do."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from worlds import FRAME, SPACE, walk

from dreamer4.data import shard_writer, spool
from dreamer4.data.codecs import Codec
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.shard_writer import ShardWriter
from dreamer4.data.writer import DatasetWriter
from dreamer4.errors import DataError
from dreamer4.types import Ending, Episode, EpisodePart

TASKS = ["even", "odd"]


def long_walk(length: int = 300) -> Episode:
    """With two kinds of events."""
    random = np.random.default_rng(1)
    events = random.random((length, 2)) < 0.05
    return Episode(
        frames_THWC=random.integers(256, size=(length, *FRAME), dtype=np.uint8),
        act_out_TA=random.integers(3, size=(length, 1)).astype(np.float32) * (np.arange(length) < length - 1)[:, None],
        act_known_T=np.arange(length) < length - 1,
        reward_T=events[:, 0].astype(np.float32) * (np.arange(length) > 0),
        terminal=False,
        truncated=True,
        success=True,
        task=1,
        source="film",
        events_TK=events,
    )


def parts_of(episode: Episode, sizes: list[int]) -> Iterator[EpisodePart]:
    start = 0
    for size in sizes:
        stop = min(start + size, episode.length)
        rows = slice(start, stop)
        end = Ending(episode.terminal, episode.truncated, episode.success) if stop == episode.length else None
        assert episode.events_TK is not None
        columns = (episode.frames_THWC, episode.act_out_TA, episode.act_known_T, episode.reward_T, episode.events_TK)
        yield EpisodePart(*(column[rows] for column in columns), end)
        start = stop


PACKED = Codec("zstd")


def new_writer(folder: Path, codec: Codec = PACKED) -> DatasetWriter:
    return DatasetWriter(folder, "walk", FRAME, SPACE, TASKS, codec=codec)


@pytest.mark.parametrize("codec", [Codec(), Codec("zstd", chunk=16)], ids=["raw", "zstd"])
@pytest.mark.parametrize("sizes", [[300], [1] * 300, [64, 64, 64, 64, 44], [7, 200, 93], [299, 1]], ids=len)
def test_the_parts_make_the_same_file_as_the_whole(tmp_path, codec, sizes):
    episode = long_walk()
    with new_writer(tmp_path / "whole", codec) as writer:
        writer.add(episode)
    with new_writer(tmp_path / "parts", codec) as writer:
        assert writer.add_parts(parts_of(episode, sizes), episode.task, episode.source) == 300
    for name in ("shard-00000.arrow", "index-00000.arrow", "manifest.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    found = EpisodeDataset.open(tmp_path / "parts").episode(0)
    for name, value in vars(episode).items():
        same = (
            np.array_equal(getattr(found, name), value)
            if isinstance(value, np.ndarray)
            else getattr(found, name) == value
        )
        assert same, name


def test_events_are_found_by_position_without_reading_a_frame(tmp_path):
    episode = long_walk()
    with new_writer(tmp_path) as writer:
        writer.add(walk(0))
        writer.add(episode)
    data = EpisodeDataset.open(tmp_path)
    assert episode.events_TK is not None
    frame, task = np.nonzero(episode.events_TK)
    assert np.array_equal(data.event_frame_V, frame + walk(0).length) and np.array_equal(data.event_task_V, task)
    bits = np.asarray(data.events_F)[walk(0).length :]
    assert (
        np.array_equal(bits >> 1 & 1, episode.events_TK[:, 1]) and not np.asarray(data.events_F)[: walk(0).length].any()
    )


class Torn(Exception):
    pass


def torn(episode: Episode) -> Iterator[EpisodePart]:
    yield from list(parts_of(episode, [100, 100, 100]))[:2]
    raise Torn


def without_end(episode: Episode) -> Iterator[EpisodePart]:
    yield from list(parts_of(episode, [100, 100, 100]))[:2]


def beyond_end(episode: Episode) -> Iterator[EpisodePart]:
    yield from parts_of(episode, [300])
    yield next(parts_of(episode, [1]))


def late_fault(episode: Episode) -> Iterator[EpisodePart]:
    *first, last = parts_of(episode, [100, 100, 100])
    yield from first
    yield replace(last, reward_T=np.full(100, np.nan, np.float32))


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        (torn, Torn, "^$"),
        (without_end, DataError, "episode 1 stopped after 200 frames without a last part"),
        (beyond_end, DataError, "episode 1 goes on after a part with an end"),
        (late_fault, DataError, "episode 1 holds a reward that is not finite"),
        (lambda episode: iter(()), DataError, "episode 1 stopped after 0 frames"),
    ],
)
def test_nothing_of_a_torn_episode_stays_and_the_writer_goes_on(tmp_path, parts, error, message):
    """The files are those of a writer that never saw it."""
    for folder, tears in ((tmp_path / "torn", True), (tmp_path / "clean", False)):
        with new_writer(folder) as writer:
            writer.add(walk(0))
            if tears:
                with pytest.raises(error, match=message):
                    writer.add_parts(parts(long_walk()))
            writer.add(walk(1))
    names = sorted(path.name for path in (tmp_path / "clean").iterdir())
    assert sorted(path.name for path in (tmp_path / "torn").iterdir()) == names
    for name in names:
        assert (tmp_path / "torn" / name).read_bytes() == (tmp_path / "clean" / name).read_bytes(), name


def test_a_first_episode_that_is_torn_leaves_no_dataset(tmp_path):
    writer = new_writer(tmp_path)
    with pytest.raises(Torn):
        writer.add_parts(torn(long_walk()))
    with pytest.raises(DataError, match="would hold no episode"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_hours_take_the_memory_of_a_part(tmp_path, monkeypatch):
    """Small columns of the episode stay in memory, its frames go to the disk."""
    monkeypatch.setattr(spool, "MEMORY", 1 << 20)
    monkeypatch.setattr(shard_writer, "BATCH_BYTES", 1 << 20)
    part = next(parts_of(long_walk(), [200]))
    part = replace(part, act_known_T=np.zeros(200, bool))

    def endless(count: int) -> Iterator[EpisodePart]:
        yield part
        for number in range(count):
            yield replace(part, reward_T=np.zeros(200, np.float32), end=None if number < count - 1 else Ending())

    with ShardWriter(tmp_path, "walk", FRAME, SPACE, TASKS, 0, 0, Codec()) as writer:
        tracemalloc.start()
        try:
            frames = writer.add_parts(endless(200))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    total = frames * int(np.prod(FRAME))
    assert total > 9e6 and peak < total / 1.5
