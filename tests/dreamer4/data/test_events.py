"""Rows that pursue tasks by events, as recordings of Minecraft have them; the paper's section 3.3."""

from pathlib import Path

import numpy as np
import pytest
from recordings import line, write_vpt

from actors.importer import Job, SourceImporter, gather
from dreamer4.data.clips import ClipSampler
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.importers.canvas import Canvas
from dreamer4.data.importers.importer import Options
from dreamer4.data.importers.vpt_tasks import TASKS
from dreamer4.data.mixing import Half
from dreamer4.errors import DataError

LOG, PLANKS = (TASKS.index(name) for name in ("mine_log", "craft_planks"))
LENGTH = 6


def ticks(log_at: int, planks_at: int, count: int = 60) -> list[dict]:
    """A tree falls at one tick, planks are made at another one, of the counters that VPT keeps."""
    lines = []
    for t in range(count):
        stats = {"minecraft.custom:minecraft.play_one_minute": t}
        stats |= {"minecraft.mine_block:minecraft.oak_log": 1} if t >= log_at else {}
        stats |= {"minecraft.craft_item:minecraft.oak_planks": 4} if t >= planks_at else {}
        lines.append(line(t, stats=stats))
    return lines


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    """Imported: logs in both recordings, planks in the second one."""
    folder: Path = tmp_path_factory.mktemp("vpt")
    write_vpt(folder / "in", ticks(20, 1000), name="a")
    write_vpt(folder / "in", ticks(10, 40), name="b")
    job = Job("vpt", folder / "in", Options(canvas=Canvas(16, 24)), folder / "out", "zstd")
    gather(job.folder, [SourceImporter(job).make(0, ("a", "b"))[0]])
    return EpisodeDataset.open(job.folder)


def test_relevant_rows_hold_an_event_of_their_task_and_are_rewarded_by_it(dataset):
    """Negative control: the reward column of such recordings is 0 throughout."""
    assert not dataset.reward_F[np.arange(dataset.frame_count)].any()
    clips, pairs, tasks, rewards = ClipSampler(dataset), dataset.event_pairs, [], []
    for step in range(20):
        clip, relevant_B = clips.mixture(step, 16, LENGTH, pairs)
        assert relevant_B.sum() == 8 and bool((clip.task_BT == clip.task_BT[:, :1]).all())
        task_B, reward_BT = clip.task_BT[:, 0].numpy(), clip.reward_BT.numpy()
        assert set(task_B[relevant_B]) <= {LOG, PLANKS}
        for row in np.flatnonzero(relevant_B):
            assert reward_BT[row].sum() >= 1, "the window holds the event"
        assert not reward_BT[~np.isin(task_B, (LOG, PLANKS))].any()
        tasks.append(task_B), rewards.append(reward_BT[~relevant_B])
    drawn, halves = np.concatenate(tasks), np.concatenate([task[:8] for task in tasks])
    assert len(set(halves)) > len(TASKS) / 2, "uniform rows pursue any task"
    reached = drawn.reshape(20, 16)[:, 8:]
    assert 0.35 < (reached == PLANKS).mean() < 0.65, "rare tasks as often as others"
    assert np.concatenate(rewards).sum() < 10


def test_parts_of_a_batch_and_batches_without_frames_are_the_same_rows(dataset):
    clips, pairs = ClipSampler(dataset), dataset.event_pairs
    whole, _ = clips.mixture(3, 8, LENGTH, pairs)
    for rows in (slice(1, None, 3), np.array([6, 0, 3])):
        part, _ = clips.mixture(3, 8, LENGTH, pairs, rows, contents=False)
        assert np.array_equal(part.task_BT, whole.task_BT[rows]) and np.array_equal(
            part.reward_BT, whole.reward_BT[rows]
        )


def test_halves_as_plain_batches_are_the_same_rows_shuffled(dataset):
    clips, pairs = ClipSampler(dataset), dataset.event_pairs
    (whole, relevant_B), half = clips.mixture(3, 8, LENGTH, pairs), Half(clips, pairs)
    rewards, shuffled = whole.reward_BT.sum(1), half.batch(3, 8, LENGTH).reward_BT.sum(1)
    assert sorted(shuffled.tolist()) == sorted(rewards.tolist()) and relevant_B.sum() == 4
    assert not np.array_equal(half.batch(3, 8, LENGTH).task_BT, whole.task_BT)
    for rows in (slice(1, None, 3), np.array([6, 0, 3])):
        part = half.batch(3, 8, LENGTH, rows, contents=False)
        assert np.array_equal(part.task_BT, half.batch(3, 8, LENGTH).task_BT[rows])


def test_events_outside_of_the_chosen_episodes_are_not_used(dataset):
    first = ClipSampler(dataset, np.array([True, False]))
    clip, relevant_B = first.mixture(0, 16, LENGTH, dataset.event_pairs)
    assert set(clip.task_BT[relevant_B].unique().tolist()) == {LOG}
    with pytest.raises(DataError, match="no event is in the episodes"):
        first.mixture(0, 16, LENGTH, dataset.event_pairs[dataset.event_task_V == PLANKS])
