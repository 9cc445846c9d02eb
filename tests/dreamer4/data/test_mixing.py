from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import tiny_dynamics
from states import assert_equal
from worlds import LATENT, World, walk, write_walks

from dreamer4.actions import ActionSpace
from dreamer4.data.clips import ClipSampler
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.mixing import MixedClips
from dreamer4.data.writer import DatasetWriter
from dreamer4.errors import DataError


def unlabelled(index: int):
    """The same walk, filmed upside down by somebody who didn't write the keys down."""
    one = walk(index)
    return replace(one, frames_THWC=255 - one.frames_THWC, act_known_T=np.zeros(one.length, bool))


@pytest.fixture
def mixed(world: World, tmp_path) -> MixedClips:
    films = write_walks(tmp_path, [unlabelled(index) for index in range(24)])
    return MixedClips([world.clips(latents=False), ClipSampler(films, seed=7)], [3, 1], seed=2)


def test_rows_are_those_of_their_datasets_and_in_proportion(mixed):
    counts = np.zeros(2)
    for step in range(20):
        clip, source = mixed.batch(step, 16, 6), mixed.sources(step, 16)
        counts += np.bincount(source, minlength=2)
        for row, number in enumerate(source):
            own = mixed.samplers[number].batch(step, 16, 6, slice(row, row + 1))
            assert_equal({k: v if v is None else v[row : row + 1] for k, v in vars(clip).items()}, vars(own))
    assert 0.65 < counts[0] / counts.sum() < 0.85


def test_parts_of_a_mixed_batch_are_its_rows(mixed):
    whole = mixed.batch(3, 8, 5)
    for rows in (slice(1, None, 3), np.array([6, 0, 3])):
        part = mixed.batch(3, 8, 5, rows)
        index = np.arange(8)[rows]
        assert_equal(vars(part), {k: v if v is None else v[index] for k, v in vars(whole).items()})
    assert_equal(vars(mixed.batch(3, 8, 5)), vars(whole))


def test_films_without_actions_stay_without_from_the_file_to_the_model(mixed):
    """Their stored actions are zeros, and a model has no way to see that from its inputs.

    Negative control: the same world model does look at actions that are known.
    """
    clip, source = mixed.batch(0, 32, 6), torch.from_numpy(mixed.sources(0, 32))
    films = source == 1
    assert not clip.act_in_known_BT[films].any() and not clip.act_out_known_BT[films].any()
    assert clip.act_in_known_BT[~films].any(1).all()
    model = tiny_dynamics(0)
    latents = torch.randn(32, 6, *LATENT, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    level = torch.full((32, 6), 2)

    def imagined(act_in: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(
                latents, level, torch.zeros_like(level), act_in, clip.act_in_known_BT, clip.segment_BT
            ).clean_BTSD

    one, other = imagined(clip.act_in_BTA), imagined((clip.act_in_BTA + 1) % 3)
    assert torch.equal(one[films], other[films]) and not torch.equal(one[~films], other[~films])


def test_what_can_not_be_mixed_is_refused_with_both_values(world, tmp_path):
    clips = world.clips(latents=False)
    with DatasetWriter(tmp_path, "walk", (10, 8, 3), ActionSpace.discrete(3, "steer"), ["even", "odd"]) as writer:
        writer.add(walk(0))
    other = ClipSampler(EpisodeDataset.open(tmp_path))
    with pytest.raises(DataError, match="its actions is"):
        MixedClips([clips, other], [1, 1])
    with pytest.raises(DataError, match="mix one kind"):
        MixedClips([clips, world.clips()], [1, 1])
    for weights in ([1], [1, -1], [0, 0], [1, float("nan")]):
        with pytest.raises(DataError, match="weights"):
            MixedClips([clips, clips], weights)
