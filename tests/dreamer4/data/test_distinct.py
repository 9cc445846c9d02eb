from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from worlds import World, walk, write_walks

from dreamer4.data.clips import ClipSampler
from dreamer4.data.distinct import digests, distinct_frames
from dreamer4.data.episodes import EpisodeDataset


@pytest.fixture
def plain(tmp_path: Path) -> EpisodeDataset:
    """The walks of the test world without noise: four different frames, and three actions."""
    walks = [walk(index) for index in range(24)]
    return write_walks(tmp_path, [replace(one, frames_THWC=one.frames_THWC // 120 * 120) for one in walks])


def test_everything_that_chosen_episodes_show_is_equally_often(plain: EpisodeDataset):
    """A place that is often visited gives different frames, one that is seldom visited the same ones again."""
    chosen_E = np.arange(plain.episode_count) % 2 == 0
    episode_F = plain.episode_of(np.arange(plain.frame_count))
    visits = Counter(digests(plain, np.flatnonzero(chosen_E[episode_F])))
    times = min(visits.values()) + 2
    assert max(visits.values()) > times
    found = distinct_frames(plain, chosen_E, 3, times)
    assert chosen_E[episode_F[found]].all()
    assert Counter(digests(plain, found)) == dict.fromkeys(visits, times)
    different = Counter(digests(plain, np.unique(found)))
    assert different == {shown: min(count, times) for shown, count in visits.items()}


def test_seeds_choose_among_equal_ones(plain: EpisodeDataset):
    everything = np.ones(plain.episode_count, bool)
    first, again, other = (distinct_frames(plain, everything, seed).tolist() for seed in (3, 3, 4))
    assert first == again and sorted(first) != sorted(other)


def test_where_no_two_frames_are_alike_all_are_equally_often(world: World):
    everything = np.ones(world.dataset.episode_count, bool)
    found = distinct_frames(world.dataset, everything, 0, times=2)
    assert np.array_equal(np.sort(found), np.repeat(np.arange(world.dataset.frame_count), 2))


def test_windows_that_hold_such_frames_may_end_alive(plain: EpisodeDataset):
    everything = np.ones(plain.episode_count, bool)
    frame_V = distinct_frames(plain, everything, 0)
    ends = {}
    for alive in (False, True):
        clips = ClipSampler(plain, everything, name="contexts", ends_alive=alive)
        batches = [clips.mixture(step, 8, 3, frame_V, contents=False)[0] for step in range(20)]
        ends[alive] = min(float(batch.continue_BT[:, -1].min()) for batch in batches)
    assert ends == {False: 0.0, True: 1.0}
