from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from worlds import World, walk, write_walks

from dreamer4.data.clips import ClipSampler
from dreamer4.data.distinct import digests, distinct_arrivals
from dreamer4.data.episodes import EpisodeDataset


@pytest.fixture
def plain(tmp_path: Path) -> EpisodeDataset:
    """The walks of the test world without noise: four different frames, and three actions."""
    walks = [walk(index) for index in range(24)]
    return write_walks(tmp_path, [replace(one, frames_THWC=one.frames_THWC // 120 * 120) for one in walks])


def ways(dataset: EpisodeDataset, frame_N: np.ndarray) -> list[tuple[bytes, ...]]:
    """How each frame was arrived at, one frame after the other."""
    found = []
    for frame in frame_N.tolist():
        if dataset.is_first(np.array([frame]))[0]:
            found.append((dataset.frames.take(np.array([frame])).tobytes(),))
        else:
            before = np.array([frame - 1])
            found.append((dataset.frames.take(before).tobytes(), dataset.act_out_FA[before].tobytes()))
    return found


def test_every_different_way_to_a_frame_is_there_once(plain: EpisodeDataset):
    """Of episodes that were chosen; the same frame before another action is another way."""
    chosen_E = np.arange(plain.episode_count) % 2 == 0
    episode_F = plain.episode_of(np.arange(plain.frame_count))
    every = ways(plain, np.flatnonzero(chosen_E[episode_F]))
    found = distinct_arrivals(plain, chosen_E, seed=3)
    assert chosen_E[plain.episode_of(found)].all() and found.dtype == np.int64
    assert len(ways(plain, found)) == len(set(every)) < len(every) / 4 and set(ways(plain, found)) == set(every)
    assert len(found) > len(set(digests(plain, found))), "actions tell ways apart"


def test_seeds_choose_among_equal_ones(plain: EpisodeDataset):
    everything = np.ones(plain.episode_count, bool)
    first, again, other = (distinct_arrivals(plain, everything, seed).tolist() for seed in (3, 3, 4))
    assert first == again and first != other


def test_where_no_two_frames_are_alike_every_frame_is_its_own(world: World):
    everything = np.ones(world.dataset.episode_count, bool)
    assert distinct_arrivals(world.dataset, everything, 0).tolist() == list(range(world.dataset.frame_count))


def test_windows_that_hold_such_frames_may_end_alive(plain: EpisodeDataset):
    everything = np.ones(plain.episode_count, bool)
    frame_V = distinct_arrivals(plain, everything, 0)
    ends = {}
    for alive in (False, True):
        clips = ClipSampler(plain, everything, name="contexts", ends_alive=alive)
        batches = [clips.mixture(step, 8, 3, frame_V, contents=False)[0] for step in range(20)]
        ends[alive] = min(float(batch.continue_BT[:, -1].min()) for batch in batches)
    assert ends == {False: 0.0, True: 1.0}
