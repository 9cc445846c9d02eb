import numpy as np
import pytest
from worlds import FRAME, walk, write_walks

from dreamer4.data import statistics
from dreamer4.data.statistics import pixel_statistics
from dreamer4.errors import DataError


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_statistics_are_those_of_all_frames_of_the_chosen_episodes(world, monkeypatch, rows):
    monkeypatch.setattr(statistics, "CHUNK_BYTES", rows * int(np.prod(FRAME)))
    chosen = np.arange(24) % 2 == 0
    video = np.concatenate([one.frames_THWC for one, kept in zip(world.walks, chosen, strict=True) if kept]) / 255
    mean, std = pixel_statistics(world.dataset, chosen, 10_000, seed=0)
    assert mean.shape == std.shape == FRAME and mean.dtype == std.dtype == np.float32
    assert np.allclose(mean, video.mean(axis=0), atol=1e-6) and np.allclose(std, video.std(axis=0), atol=1e-6)
    everything = np.concatenate([one.frames_THWC for one in world.walks]) / 255
    assert not np.allclose(mean, everything.mean(axis=0), atol=1e-4), "the held-out episodes would show"


def test_a_pixel_that_never_changes_has_no_spread(tmp_path):
    recording = walk(0)
    recording.frames_THWC[:, 0, 0] = (3, 77, 255)
    _, std = pixel_statistics(write_walks(tmp_path, [recording]), np.ones(1, bool), 100, seed=0)
    assert (std[0, 0] == 0).all() and (std[1:] > 0).any()


def test_a_part_of_the_frames_is_drawn_by_seed(world):
    every = np.ones(24, bool)
    one, again, other = (pixel_statistics(world.dataset, every, 60, seed)[0] for seed in (1, 1, 2))
    full = pixel_statistics(world.dataset, every, 10_000, seed=1)[0]
    assert np.array_equal(one, again) and not np.array_equal(one, other) and not np.array_equal(one, full)
    assert abs(one - full).max() < 0.25
    with pytest.raises(DataError, match="no episode"):
        pixel_statistics(world.dataset, ~every, 60, seed=0)
