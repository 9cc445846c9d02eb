import threading

import numpy as np
import pytest
from states import assert_equal
from worlds import World

from dreamer4.data.clips import ClipSampler
from dreamer4.data.loader import Prefetch
from dreamer4.errors import DataError


def shape(step: int) -> tuple[int, int]:
    return (4, 6) if step % 3 else (2, 12)


@pytest.mark.parametrize("latents", [False, True])
def test_reading_ahead_changes_no_bit(world: World, latents: bool):
    """In order, out of order, and after a jump as a resumed run makes it."""
    plain, ahead = world.clips(latents=latents), Prefetch(world.clips(latents=latents), 3, shape)
    for step in [*range(8), 3, 20, 21, 22]:
        assert_equal(vars(ahead.batch(step, *shape(step))), vars(plain.batch(step, *shape(step))))
    assert ahead.hits >= 9
    ahead.close()
    assert_equal(vars(ahead.batch(23, 4, 6)), vars(plain.batch(23, 4, 6)))


def test_mixtures_and_parts_of_a_batch_are_read_ahead_too(world: World):
    plain, ahead = world.clips(), Prefetch(world.clips(), 2)
    success, some = world.dataset.success_E, np.array([5, 1, 2])
    for step in range(6):
        for rows in (slice(0, None, 2), slice(1, None, 2), some):
            (one, relevant), (other, wanted) = (c.mixture(step, 6, 5, success, rows) for c in (ahead, plain))
            assert_equal(vars(one), vars(other))
            assert relevant.equal(wanted)
    assert (ahead.hits, ahead.misses) == (15, 3)
    ahead.close()


def test_a_later_batch_is_read_while_the_learner_computes(world: World):
    """By another thread, and nothing is read that far ahead that it is never asked for."""
    clips, readers = world.clips(), dict[int, str]()
    batch = clips.batch

    def watched(step: int, *more) -> object:
        readers[step] = threading.current_thread().name
        return batch(step, *more)

    clips.batch = watched  # type: ignore[method-assign]
    ahead = Prefetch(clips, 2)
    for step in range(4):
        ahead.batch(step, 3, 4)
    ahead.close()
    assert readers[0] == threading.current_thread().name
    assert all(readers[step].startswith("prefetch") for step in (1, 2, 3)) and set(readers) <= set(range(6))


def test_ranks_share_a_batch_and_a_resumed_run_goes_on(world: World):
    """One rank and four, before and after a stop: the same rows of the same batches."""
    whole = [world.clips().batch(step, 8, 5) for step in range(6)]
    for rank in range(4):
        rows = slice(rank, None, 4)
        for start in (0, 3):  # a fresh process begins at step 3
            reader = Prefetch(ClipSampler(world.dataset, None, world.latents, 7, "clips"), 2)
            for step in range(start, 6):
                own = reader.batch(step, 8, 5, rows)
                assert_equal(vars(own), {k: v if v is None else v[rows] for k, v in vars(whole[step]).items()})
            reader.close()


def test_what_goes_wrong_ahead_is_told_when_it_is_asked_for(world: World):
    clips = world.clips()
    batch = clips.batch

    def broken(step: int, *more) -> object:
        if step == 2:
            raise DataError("shard-00001.arrow is damaged")
        return batch(step, *more)

    clips.batch = broken  # type: ignore[method-assign]
    ahead = Prefetch(clips, 2)
    ahead.batch(0, 2, 4)
    ahead.batch(1, 2, 4)
    with pytest.raises(DataError, match="shard-00001"):
        ahead.batch(2, 2, 4)
    ahead.batch(3, 2, 4)
    ahead.close()
