import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from worlds import FRAME, SPACE, walk

from dreamer4.actions import ActionSpace, Part
from dreamer4.data import shard_writer
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.shard_writer import ShardWriter
from dreamer4.data.writer import DatasetWriter, finished_shard, merge_shards
from dreamer4.errors import DataError, RunError
from dreamer4.types import Episode

ROOT = Path(__file__).resolve().parents[3]
TASKS = ["even", "odd"]


def new_writer(folder: Path, shard_frames: int = 40) -> DatasetWriter:
    return DatasetWriter(folder, "walk", FRAME, SPACE, TASKS, shard_frames)


def write(folder: Path, episodes: list[Episode], shard_frames: int = 40) -> EpisodeDataset:
    with new_writer(folder, shard_frames) as writer:
        for episode in episodes:
            writer.add(episode)
    return EpisodeDataset.open(folder, verify=True)


def assert_holds(dataset: EpisodeDataset, episodes: list[Episode]) -> None:
    assert dataset.episode_count == len(episodes)
    for index, wanted in enumerate(episodes):
        found = dataset.episode(index)
        for name in ("frames_THWC", "act_out_TA", "act_known_T", "reward_T"):
            assert np.array_equal(getattr(found, name), getattr(wanted, name)), (index, name)
        for name in ("terminal", "success", "task", "source"):
            assert getattr(found, name) == getattr(wanted, name), (index, name)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_plain_pyarrow_reads_what_was_written(tmp_path):
    """The format is its description, not this program: only pyarrow, numpy and json are needed."""
    episodes = [replace(walk(index), source=("bot", "human")[index % 2]) for index in range(12)]
    write(tmp_path, episodes)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["format"] == "dreamer4-episodes" and manifest["version"] == 2
    assert manifest["frame"] == list(FRAME) and manifest["tasks"] == TASKS and manifest["env"] == "walk"
    assert manifest["episodes"] == 12 and manifest["frames"] == sum(one.length for one in episodes)
    assert len(manifest["shards"]) > 1
    table = pa.concat_tables(
        pa.ipc.open_file(str(tmp_path / shard["file"])).read_all().unify_dictionaries() for shard in manifest["shards"]
    )
    lengths = [one.length for one in episodes]
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    video = np.frombuffer(b"".join(columns["frame"]), np.uint8).reshape(-1, *FRAME)
    assert np.array_equal(video, np.concatenate([one.frames_THWC for one in episodes]))
    assert np.array_equal(columns["act_out"], np.concatenate([one.act_out_TA for one in episodes]))
    assert columns["act_known"] == [t < length - 1 for length in lengths for t in range(length)]
    assert columns["first"] == [t == 0 for length in lengths for t in range(length)]
    assert columns["terminal"] == [one.terminal and t == one.length - 1 for one in episodes for t in range(one.length)]
    assert np.array_equal(columns["reward"], np.concatenate([one.reward_T for one in episodes]))
    for name, per_episode in {
        "episode": range(12),
        "task": [one.task for one in episodes],
        "success": [one.success for one in episodes],
        "source": [one.source for one in episodes],
    }.items():
        assert columns[name] == list(np.repeat(np.array(list(per_episode)), lengths)), name


def test_manifest_has_the_statistics_of_the_episodes(tmp_path):
    episodes = [walk(index) for index in range(12)]
    found = write(tmp_path, episodes).manifest.statistics
    returns = [one.episode_return for one in episodes]
    assert 0 < found["success_share"] < 1
    assert found["return_mean"] == pytest.approx(np.mean(returns))
    assert found["return_std"] == pytest.approx(np.std(returns))
    assert found["success_share"] == pytest.approx(np.mean([one.success for one in episodes]))
    assert found["length_mean"] == pytest.approx(np.mean([one.length for one in episodes]))


def batches(dataset: EpisodeDataset) -> int:
    paths = [Path(dataset.folder) / shard.file for shard in dataset.manifest.shards]
    return sum(pa.ipc.open_file(str(path)).num_record_batches for path in paths)


def test_many_small_record_batches_and_shards_give_the_same_dataset(tmp_path, monkeypatch):
    """Sources are added to the dictionary of a file while it grows."""
    episodes = [replace(walk(index), source=f"source {index % 5}") for index in range(12)]
    monkeypatch.setattr(shard_writer, "BATCH_BYTES", 1)
    dataset = write(tmp_path / "small", episodes, shard_frames=20)
    assert batches(dataset) == 12 and len(dataset.manifest.shards) > 2
    assert_holds(dataset, episodes)
    monkeypatch.undo()
    one_piece = write(tmp_path / "large", episodes, shard_frames=1000)
    assert batches(one_piece) == 1
    assert_holds(one_piece, episodes)


def test_all_kinds_of_action_and_gaps_in_the_actions_survive(tmp_path):
    space = ActionSpace((Part("camera", "categorical", 5), Part("keys", "binary", 2), Part("stick", "continuous", 1)))
    act_out = np.array([[4, 0, 1, -0.25], [7, 7, 7, np.nan], [0, 1, 1, 2.5], [9, 9, 9, 9]], np.float32)
    known = np.array([True, False, True, False])
    episode = replace(walk(0), frames_THWC=np.zeros((4, *FRAME), np.uint8), act_out_TA=act_out, act_known_T=known)
    episode = replace(episode, reward_T=np.array([0, 1, -2, 0.5], np.float32), terminal=True)
    with DatasetWriter(tmp_path, "mixed", FRAME, space, ["only"]) as writer:
        writer.add(episode)
    dataset = EpisodeDataset.open(tmp_path)
    assert dataset.manifest.actions == space
    assert np.array_equal(dataset.act_known_F, known)
    assert np.array_equal(dataset.act_out_FA, np.where(known[:, None], act_out, 0)), "what is not known is stored as 0"


def test_adding_to_a_dataset_continues_its_numbers(tmp_path):
    episodes = [walk(index) for index in range(10)]
    first = write(tmp_path, episodes[:4])
    both = write(tmp_path, episodes[4:])
    assert_holds(both, episodes)
    assert both.manifest.fingerprint != first.manifest.fingerprint
    assert [shard.first_episode for shard in both.manifest.shards][len(first.manifest.shards)] == 4
    assert_holds(first, episodes[:4])  # a reader that was open before goes on


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env": "run"}, "env is walk, not run"),
        ({"frame_shape": (8, 10, 3)}, r"frame is \[10, 8, 3\], not \[8, 10, 3\]"),
        ({"actions": ActionSpace.discrete(4)}, "actions"),
        ({"tasks": ["even"]}, "tasks"),
    ],
)
def test_other_recordings_can_not_be_added(tmp_path, change, message):
    write(tmp_path, [walk(0)])
    wanted = {"env": "walk", "frame_shape": FRAME, "actions": SPACE, "tasks": TASKS, **change}
    with pytest.raises(DataError, match=message):
        DatasetWriter(tmp_path, **wanted)


def spoiled(name: str) -> Episode:
    good = walk(1)
    length = good.length
    known, reward, act_out = good.act_known_T.copy(), good.reward_T.copy(), good.act_out_TA.copy()
    known[-1] = True
    reward[0] = 1
    act_out[0] = 3
    not_finite = np.where(np.arange(length) == 1, np.nan, 0).astype(np.float32)
    return {
        "frame size": replace(good, frames_THWC=good.frames_THWC[:, :, :7]),
        "frame type": replace(good, frames_THWC=good.frames_THWC.astype(np.float32)),
        "no frame": replace(good, frames_THWC=good.frames_THWC[:0]),
        "one action per transition": replace(good, act_out_TA=good.act_out_TA[:-1]),
        "action columns": replace(good, act_out_TA=np.zeros((length, 2), np.float32)),
        "known mask": replace(good, act_known_T=good.act_known_T[1:]),
        "reward count": replace(good, reward_T=good.reward_T[1:]),
        "action after the end": replace(good, act_known_T=known),
        "reward before any action": replace(good, reward_T=reward),
        "reward not finite": replace(good, reward_T=not_finite),
        "action outside": replace(good, act_out_TA=act_out),
        "task": replace(good, task=2),
    }[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("frame size", r"frames uint8 \(.*\), the dataset takes"),
        ("frame type", "float32"),
        ("no frame", r"\(0, 10, 8, 3\)"),
        ("one action per transition", "act_out_TA of shape"),
        ("action columns", "act_out_TA of shape"),
        ("known mask", "act_known_T of shape"),
        ("reward count", "reward_T of shape"),
        ("action after the end", "knows an action at its last frame"),
        ("reward before any action", "rewards are on arrival"),
        ("reward not finite", "not finite"),
        ("action outside", "whole numbers from 0 to 2"),
        ("task", "task 2; the dataset has 2"),
    ],
)
def test_an_episode_that_breaks_the_contract_is_refused_and_the_others_are_kept(tmp_path, name, message):
    with new_writer(tmp_path) as writer:
        with pytest.raises(DataError, match=f"episode 0.*{message}"):
            writer.add(spoiled(name))
        writer.add(walk(0))
        with pytest.raises(DataError, match=f"episode 1.*{message}"):
            writer.add(spoiled(name))
        writer.add(walk(1))
    assert_holds(EpisodeDataset.open(tmp_path, verify=True), [walk(0), walk(1)])


def test_an_empty_dataset_is_refused(tmp_path):
    with pytest.raises(DataError, match="no episode"):
        new_writer(tmp_path).close()
    with pytest.raises(DataError, match="no episode"):
        ShardWriter(tmp_path, "walk", FRAME, SPACE, TASKS, 0, 0).close()
    assert files(tmp_path) == []


def test_an_error_while_writing_leaves_no_dataset(tmp_path):
    with pytest.raises(KeyError), new_writer(tmp_path, shard_frames=1000) as writer:
        writer.add(walk(0))
        raise KeyError("the environment broke")
    assert files(tmp_path) == []
    with pytest.raises(DataError, match="holds no finished dataset"):
        EpisodeDataset.open(tmp_path)


def test_a_folder_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file/data"):
        write(tmp_path / "file" / "data", [walk(0)])


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from dreamer4.data import shard_writer, writer as module
from worlds import FRAME, SPACE, walk
shard_writer.BATCH_BYTES = 1
writer = module.DatasetWriter(Path(sys.argv[1]), "walk", FRAME, SPACE, ["even", "odd"], shard_frames=20)
for index in range(50, 57):
    writer.add(walk(index))
assert writer._current is not None and len(writer.shards) > 0
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_former_dataset_as_it_was(tmp_path):
    before = [walk(index) for index in range(5)]
    shards = len(write(tmp_path, before, shard_frames=1000).manifest.shards)
    arguments = [sys.executable, "-c", KILLED, str(tmp_path), str(ROOT), str(ROOT / "tests")]
    killed = subprocess.run(arguments, stdin=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL
    assert any(name.endswith(".tmp") for name in files(tmp_path)), "it was killed in the middle of a shard"
    assert (tmp_path / f"shard-{shards:05d}.arrow").exists(), "and after a whole one"
    assert_holds(EpisodeDataset.open(tmp_path, verify=True), before)
    more = [walk(index) for index in range(5, 20)]
    assert_holds(write(tmp_path, more, shard_frames=20), before + more)
    assert not any(name.endswith(".tmp") for name in files(tmp_path))


def write_shard(folder: Path, index: int, per_shard: int = 3, **changes) -> None:
    arguments = {"env": "walk", "frame_shape": FRAME, "actions": SPACE, "tasks": TASKS, **changes}
    first = changes.get("first_episode", index * per_shard)
    with ShardWriter(folder, **{**arguments, "index": index, "first_episode": first}) as writer:
        for episode in range(index * per_shard, (index + 1) * per_shard):
            writer.add(walk(episode))


def test_shards_written_apart_in_any_order_and_twice_make_the_same_dataset(tmp_path):
    for folder, order in ((tmp_path / "a", (0, 1, 2)), (tmp_path / "b", (2, 0, 2, 1, 0))):
        for index in order:
            write_shard(folder, index)
        assert merge_shards(folder, 3) == merge_shards(folder, 3)
        assert_holds(EpisodeDataset.open(folder, verify=True), [walk(index) for index in range(9)])
    assert files(tmp_path / "a") == files(tmp_path / "b")
    for name in files(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_restarted_collector_knows_which_shards_are_whole(tmp_path):
    write_shard(tmp_path, 0)
    with pytest.raises(KeyError), ShardWriter(tmp_path, "walk", FRAME, SPACE, TASKS, 1, 3) as writer:
        writer.add(walk(3))
        raise KeyError
    assert [finished_shard(tmp_path, index) is not None for index in range(3)] == [True, False, False]
    cut = tmp_path / "shard-00000.arrow"
    cut.write_bytes(cut.read_bytes()[:-1])
    assert finished_shard(tmp_path, 0) is None


def test_shards_that_do_not_belong_together_are_not_merged(tmp_path):
    for index in (0, 2):
        write_shard(tmp_path, index)
    with pytest.raises(DataError, match=r"not finished: shard-00001\.arrow"):
        merge_shards(tmp_path, 3)
    write_shard(tmp_path, 1, first_episode=4)
    with pytest.raises(DataError, match=r"shard-00001\.arrow.* begins with episode 4, not 3"):
        merge_shards(tmp_path, 3)
    write_shard(tmp_path, 1, env="other")
    with pytest.raises(DataError, match=r"shard-00001\.arrow.*env is other, not walk"):
        merge_shards(tmp_path, 3)
    assert not (tmp_path / "manifest.json").exists()
    write_shard(tmp_path, 1)
    assert merge_shards(tmp_path, 3).episodes == 9
