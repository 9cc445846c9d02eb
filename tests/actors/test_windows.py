import numpy as np
import pytest
from worlds import World

from actors.windows import Windows
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.errors import DataError

CONTEXT, STEPS, MANY = 3, 4, 10_000


def validation(dataset: EpisodeDataset) -> np.ndarray:
    return np.arange(dataset.episode_count) % 3 == 0


@pytest.fixture
def windows(world: World) -> Windows:
    return Windows(world.dataset, validation(world.dataset), CONTEXT, seed=5)


def test_windows_lie_in_validation_episodes_and_end_where_another_frame_follows(world: World, windows: Windows):
    data, found = world.dataset, windows.uniform("a use", MANY, STEPS)
    episode_F = np.cumsum(data.first_F) - 1
    assert validation(data)[episode_F[found.context_NC]].all()
    ends = found.context_NC[:, -1]
    lengths = data.lengths_E[validation(data)]
    assert len(ends) == len(set(ends)) == (lengths - 1).sum()  # every frame but the last ones, once each
    assert (episode_F[found.following_NH] == episode_F[ends][:, None]).all()


def test_following_frames_are_the_next_ones_and_known_up_to_the_end_of_the_episode(world: World, windows: Windows):
    data, found = world.dataset, windows.uniform("a use", MANY, STEPS)
    last_F = np.repeat(data.starts_E + data.lengths_E - 1, data.lengths_E)
    wanted = found.context_NC[:, -1:] + np.arange(1, STEPS + 1)
    assert np.array_equal(found.known_NH, wanted <= last_F[found.context_NC[:, -1:]])
    assert np.array_equal(found.following_NH[found.known_NH], wanted[found.known_NH])
    assert not found.known_NH.all() and found.known_NH[:, 0].all()


def test_long_continuations_come_first_and_are_not_preferred(world: World, windows: Windows):
    """There are as many long ones as are asked for, so a preference would leave only these."""
    every = windows.uniform("a use", MANY, STEPS).known_NH
    some = windows.uniform("a use", int(every.all(axis=1).sum()), STEPS).known_NH
    assert (np.diff(some.sum(axis=1)) <= 0).all() and (np.diff(every.sum(axis=1)) <= 0).all()
    assert some[0].all() and not some.all()


def test_distinct_windows_end_at_every_different_frame_once(
    world: World, windows: Windows, monkeypatch: pytest.MonkeyPatch
):
    frames = world.dataset.frames
    take = frames.take
    monkeypatch.setattr(frames, "take", lambda ends: take(ends)[:, :1, :1, :1] // 16)  # random frames all differ

    def shown(ends: np.ndarray) -> list[bytes]:
        return [frame.tobytes() for frame in frames.take(ends)]

    every = shown(windows.uniform("a use", MANY, STEPS).context_NC[:, -1])
    distinct = windows.distinct("a use", MANY, STEPS)
    found = shown(distinct.context_NC[:, -1])
    assert len(found) == len(set(found)) and set(found) == set(every)
    assert len(found) < len(every)  # otherwise nothing was left out
    assert (np.diff(distinct.known_NH.sum(axis=1)) <= 0).all()
    assert len(windows.distinct("a use", 3, STEPS)) == 3


def test_windows_depend_on_seed_and_use_only(world: World, windows: Windows):
    def ends(chosen: Windows, use: str) -> list[int]:
        return chosen.uniform(use, 20, STEPS).context_NC[:, -1].tolist()

    again = Windows(world.dataset, validation(world.dataset), CONTEXT, seed=5)
    other = Windows(world.dataset, validation(world.dataset), CONTEXT, seed=6)
    assert ends(windows, "a use") == ends(again, "a use")
    assert ends(windows, "a use") != ends(windows, "b use")
    assert ends(windows, "a use") != ends(other, "a use")


def test_half_of_the_arrivals_are_events(world: World, windows: Windows):
    data, ends = world.dataset, windows.arriving("rewards", 8)[:, -1]
    assert len(ends) == len(set(ends)) == 8
    assert (data.reward_F[ends] != 0).sum() == 4
    assert not data.first_F[ends].any()  # a first frame has no reward


def test_too_few_validation_frames_are_named(world: World):
    one = np.arange(world.dataset.episode_count) == 0
    with pytest.raises(DataError, match=r"contexts of 500 frames.*have \d+ frames: collect more"):
        Windows(world.dataset, one, 500, seed=5)
