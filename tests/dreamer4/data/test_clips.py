"""The clips under the timing contract of `dreamer4.types`.

No two frames of the test world are alike, so a clip's pixels say which recording and which moment each of its frames
is; everything else in the clip has to follow from that.
"""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from states import assert_equal, same
from torch import Tensor
from worlds import GOAL, World, walk, write_walks

from dreamer4.data.clips import ClipSampler
from dreamer4.errors import DataError
from dreamer4.types import Clip, Episode


def addresses(clip: Clip, walks: list[Episode]) -> list[list[tuple[int, int]]]:
    """(episode, t) of every frame of a clip, from its pixels."""
    known = {frame.tobytes(): (e, t) for e, one in enumerate(walks) for t, frame in enumerate(one.frames_THWC)}
    assert len(known) == sum(one.length for one in walks), "no two frames are alike"
    assert clip.video_BTHWC is not None
    return [[known[frame.tobytes()] for frame in row] for row in clip.video_BTHWC.numpy()]


def wrong_fields(clip: Clip, walks: list[Episode]) -> set[str]:
    """Fields that contradict the recordings, by the contract written out frame by frame."""
    wrong = set()
    for b, row in enumerate(addresses(clip, walks)):
        segment = 0
        for t, (e, moment) in enumerate(row):
            one = walks[e]
            last, first = moment == one.length - 1, moment == 0
            if t > 0:
                continues = row[t - 1] == (e, moment - 1)
                assert continues or (first and row[t - 1][1] == walks[row[t - 1][0]].length - 1), "windows have no gaps"
                segment += not continues
            expected = {
                "act_in_BTA": torch.zeros(1) if first else torch.from_numpy(one.act_out_TA[moment - 1]),
                "act_in_known_BT": torch.tensor(not first),
                "act_out_BTA": torch.from_numpy(one.act_out_TA[moment]),
                "act_out_known_BT": torch.tensor(not last),
                "reward_BT": torch.tensor(0.0 if first else one.reward_T[moment]),
                "reward_known_BT": torch.tensor(not first),
                "continue_BT": torch.tensor(0.0 if one.terminal and last else 1.0),
                "segment_BT": torch.tensor(segment),
                "task_BT": torch.tensor(one.task),
            }
            wrong |= {name for name, value in expected.items() if not torch.equal(getattr(clip, name)[b, t], value)}
    return wrong


@pytest.mark.parametrize("length", [1, 2, 7, 30])
def test_every_field_follows_the_timing_contract(world, length):
    for step in range(20):
        assert wrong_fields(world.clips(latents=False).batch(step, 8, length), world.walks) == set()


def shifted(clip: Clip, name: str, by: int) -> Clip:
    return replace(clip, **{name: getattr(clip, name).roll(by, dims=1)})


@pytest.mark.parametrize("name", ["act_in_BTA", "act_out_BTA", "act_in_known_BT", "act_out_known_BT", "reward_BT"])
@pytest.mark.parametrize("by", [-1, 1])
def test_one_frame_too_early_or_too_late_is_noticed(world, name, by):
    """Negative control of the test above."""
    clip = world.clips(latents=False).batch(0, 16, 12)
    assert wrong_fields(clip, world.walks) == set()
    assert wrong_fields(shifted(clip, name, by), world.walks) == {name}


def test_chosen_actions_in_place_of_those_that_led_here_are_noticed(world):
    clip = world.clips(latents=False).batch(0, 16, 12)
    assert wrong_fields(replace(clip, act_in_BTA=clip.act_out_BTA), world.walks) == {"act_in_BTA"}


def place_of(frame_HWC: Tensor) -> int:
    """Where the bright column of the test world is."""
    return int(frame_HWC.float().mean(dim=(0, 2)).reshape(4, 2).mean(1).argmax())


def unexplained(clip: Clip, act_in_BT: Tensor, known_BT: Tensor) -> int:
    """Transitions that the world's rules and the given actions don't explain."""
    count = 0
    assert clip.video_BTHWC is not None
    for b in range(clip.batch):
        places = [place_of(frame) for frame in clip.video_BTHWC[b]]
        for t in range(1, clip.length):
            if known_BT[b, t]:
                move = (-1, 1, 0)[int(act_in_BT[b, t])]
                count += places[t] != min(GOAL, max(0, places[t - 1] + move))
    return count


def test_actions_explain_the_pixels_at_lag_zero_only(world):
    """The action in block t led to frame t: the rules of the world hold at no other lag."""
    clip = world.clips(latents=False).batch(0, 16, 12)
    act_in, known = clip.act_in_BTA[..., 0], clip.act_in_known_BT
    assert unexplained(clip, act_in, known) == 0
    assert unexplained(clip, act_in.roll(1, dims=1), known) > 10
    assert unexplained(clip, clip.act_out_BTA[..., 0], known) > 10
    reward_here = torch.tensor([[place_of(frame) == GOAL for frame in row] for row in clip.video_BTHWC])
    assert torch.equal(reward_here.float()[clip.reward_known_BT], clip.reward_BT[clip.reward_known_BT])
    assert torch.equal(reward_here, clip.continue_BT == 0)


def test_rows_hold_several_episodes_and_count_them(world):
    clip = world.clips(latents=False).batch(0, 16, 30)
    assert clip.segment_BT[:, 0].eq(0).all() and clip.segment_BT.max() >= 3
    assert torch.equal(clip.segment_BT.diff(dim=1) == 1, ~clip.act_in_known_BT[:, 1:])


def test_the_first_frame_of_a_row_knows_its_action_unless_an_episode_begins_there(world):
    """The predecessor is on disk, though not in the row."""
    clip = world.clips(latents=False).batch(0, 200, 3)
    first = torch.tensor([row[0][1] == 0 for row in addresses(clip, world.walks)])
    assert 0 < first.sum() < 200
    assert torch.equal(clip.act_in_known_BT[:, 0], ~first)


def test_an_action_that_was_not_recorded_is_unknown_on_both_sides(tmp_path):
    """Unlabelled stretches of a recording: neither a target of the policy nor a condition of the next frame."""
    one = walk(0)
    known = one.act_known_T & (np.arange(one.length) % 2 == 1)
    sampler = ClipSampler(write_walks(tmp_path, [replace(one, act_known_T=known)]))
    clip = sampler.clip(np.arange(one.length)[None])
    assert clip.act_out_known_BT[0].tolist() == known.tolist()
    assert clip.act_in_known_BT[0].tolist() == [False, *known[:-1]]
    assert clip.act_in_BTA[~clip.act_in_known_BT].eq(0).all() and clip.act_out_BTA[~clip.act_out_known_BT].eq(0).all()
    assert 0 < known.sum() < one.length - 1


def test_types_and_shapes_are_those_of_the_record(world):
    for clip in (world.clips().batch(0, 3, 5), world.clips(latents=False).batch(0, 3, 5)):
        assert (clip.batch, clip.length) == (3, 5)
        for field in fields(Clip):
            value = getattr(clip, field.name)
            if value is not None:
                assert value.shape[:2] == (3, 5) and value.is_contiguous(), field.name
        assert clip.act_in_BTA.dtype == clip.act_out_BTA.dtype == clip.reward_BT.dtype == torch.float32
        assert clip.continue_BT.dtype == torch.float32 and clip.segment_BT.dtype == clip.task_BT.dtype == torch.int64
        assert clip.act_in_known_BT.dtype == clip.act_out_known_BT.dtype == clip.reward_known_BT.dtype == torch.bool
    assert world.clips(latents=False).batch(0, 3, 5).video_BTHWC.dtype == torch.uint8
    latents = world.clips().batch(0, 3, 5)
    assert latents.video_BTHWC is None and latents.latents_BTSD.dtype == torch.float32


def test_batches_are_a_function_of_seed_name_and_step(world):
    """So a resumed run and a run in another order read the same batches, bit for bit."""
    one, other = world.clips(latents=False), world.clips(latents=False)
    forward = [one.batch(step, 4, 6) for step in range(5)]
    backward = [other.batch(step, 4, 6) for step in reversed(range(5))][::-1]
    for a, b in zip(forward, backward, strict=True):
        assert_equal(vars(a), vars(b))
    assert not same(vars(forward[0]), vars(forward[1]))
    assert not same(vars(forward[0]), vars(world.clips("other", latents=False).batch(0, 4, 6)))
    assert not same(vars(forward[0]), vars(ClipSampler(world.dataset, None, None, 8, "clips").batch(0, 4, 6)))


def test_latents_and_frames_of_a_batch_are_of_the_same_moments(world):
    video = world.clips(latents=False).batch(2, 16, 9)
    latents = world.clips().batch(2, 16, 9)
    starts = world.dataset.starts_E
    frame_BT = np.array([[starts[e] + t for e, t in row] for row in addresses(video, world.walks)])
    assert np.array_equal(latents.latents_BTSD.numpy(), world.latents.latents(0, world.dataset.frame_count)[frame_BT])
    assert torch.equal(video.act_in_BTA, latents.act_in_BTA)


def test_every_frame_is_drawn_equally_often(world):
    """Also those at the ends of the dataset, which windows that stop there would reach less often."""
    clip = world.clips(latents=False).batch(0, 6000, 12)
    starts = world.dataset.starts_E
    counts = np.zeros(world.dataset.frame_count)
    for row in addresses(clip, world.walks):
        counts[[starts[e] + t for e, t in row]] += 1
    mean = counts.mean()
    assert abs(counts[0] / mean - 1) < 0.2 and abs(counts[-1] / mean - 1) < 0.2
    assert counts.std() / mean < 0.08


def seen(clip: Clip, world: World) -> set[int]:
    return {e for row in addresses(clip, world.walks) for e, _ in row}


def test_episodes_that_are_not_chosen_are_never_drawn(world):
    """Held-out recordings stay unseen, and what lies end to end then is still told apart."""
    chosen = np.arange(24) % 3 == 1
    for step in range(5):
        clip = world.clips(latents=False, episodes=chosen).batch(step, 16, 20)
        assert seen(clip, world) <= set(np.flatnonzero(chosen))
        assert wrong_fields(clip, world.walks) == set()
    assert not seen(world.clips(latents=False).batch(0, 16, 20), world) <= set(np.flatnonzero(chosen))


def test_half_of_a_mixture_holds_relevant_episodes_only(world):
    relevant = world.dataset.success_E
    assert 0 < relevant.sum() < 24
    successes, others = set(np.flatnonzero(relevant)), 0
    for step in range(5):
        clip, relevant_B = world.clips(latents=False).mixture(step, 8, 12, relevant)
        assert relevant_B.dtype == torch.bool and relevant_B.sum() == 4
        assert wrong_fields(clip, world.walks) == set()
        for row, is_relevant in zip(addresses(clip, world.walks), relevant_B, strict=True):
            episodes = {e for e, _ in row}
            assert episodes <= successes or not is_relevant
            others += not episodes <= successes
    assert others > 0, "the uniform half holds what the relevant half may not"


def test_batches_of_one_row_alternate_in_a_mixture(world):
    """One sequence per device is the paper's batch; both halves have to be trained all the same."""
    kinds = [world.clips().mixture(step, 1, 8, world.dataset.success_E)[1].item() for step in range(4)]
    assert kinds == [False, True, False, True]
    assert world.clips().mixture(0, 5, 8, world.dataset.success_E)[1].sum() == 2


def test_mixtures_are_reproducible_and_keep_to_the_chosen_episodes(world):
    chosen = np.arange(24) < 12
    relevant = world.dataset.success_E
    one, again = (world.clips(latents=False, episodes=chosen).mixture(3, 6, 9, relevant) for _ in range(2))
    assert_equal([vars(one[0]), one[1]], [vars(again[0]), again[1]])
    assert seen(one[0], world) <= set(range(12))


def test_a_sampler_serves_several_relevances_in_turn(world):
    sampler = world.clips(latents=False)
    for relevant in (world.dataset.success_E, ~world.dataset.success_E, world.dataset.success_E):
        clip, relevant_B = sampler.mixture(0, 8, 5, relevant)
        rows = [row for row, kind in zip(addresses(clip, world.walks), relevant_B, strict=True) if kind]
        assert all(relevant[e] for row in rows for e, _ in row)


def test_relevant_windows_of_long_episodes_hold_an_event(world):
    """Given the frames at which something was reached, each is found as often as any, at any place of a window."""
    chosen = np.arange(24) < 12
    events = world.dataset.starts_E[:16] + 2
    sampler, places = world.clips(latents=False, episodes=chosen), []
    for step in range(60):
        clip, relevant_B = sampler.mixture(step, 8, 6, events)
        assert wrong_fields(clip, world.walks) == set() and seen(clip, world) <= set(range(12))
        rows = [row for row, kind in zip(addresses(clip, world.walks), relevant_B, strict=True) if kind]
        found = [[t for t, (e, moment) in enumerate(row) if moment == 2] for row in rows]
        assert len(rows) == 4 and all(found)
        places += [one[0] for one in found]
    assert set(places) == set(range(6))
    with pytest.raises(DataError, match="nothing was reached"):
        sampler.mixture(0, 8, 6, world.dataset.starts_E[14:] + 2)


def test_recordings_shorter_than_a_window_are_refused_with_both_numbers(world):
    frames = world.dataset.frame_count
    assert wrong_fields(world.clips(latents=False).batch(0, 2, frames), world.walks) == set()
    with pytest.raises(DataError, match=f"{frames + 1} frames.* have {frames} in all"):
        world.clips().batch(0, 2, frames + 1)
    only = np.arange(24) == np.flatnonzero(world.dataset.success_E)[0]
    length = int(world.dataset.lengths_E[only][0])
    with pytest.raises(DataError, match=f"have {length} in all"):
        world.clips().mixture(0, 2, length + 1, only)


def test_an_empty_or_foreign_choice_is_refused(world, tmp_path):
    nothing = np.zeros(24, bool)
    with pytest.raises(DataError, match="no episode"):
        world.clips(episodes=nothing)
    with pytest.raises(DataError, match="is relevant"):
        world.clips().mixture(0, 2, 4, nothing)
    with pytest.raises(DataError, match="24 episodes"):
        world.clips(episodes=np.ones(23, bool))
    other = write_walks(tmp_path, [walk(0)])
    with pytest.raises(DataError, match="encode it again"):
        ClipSampler(other, None, world.latents)
