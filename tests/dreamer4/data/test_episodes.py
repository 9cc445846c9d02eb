import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from worlds import FRAME, SPACE, walk, write_walks

from dreamer4.actions import ActionSpace
from dreamer4.data.codecs import Codec
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.writer import DatasetWriter
from dreamer4.errors import DataError
from dreamer4.types import Episode


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pristine") / "episodes"
    write_walks(folder, [walk(index) for index in range(12)])
    return folder


@pytest.fixture
def damaged(pristine, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "damaged"))


def edit_manifest(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_columns_are_those_of_the_recordings(world):
    data, walks = world.dataset, world.walks
    lengths = [one.length for one in walks]
    assert data.episode_count == len(walks) and data.frame_count == sum(lengths)
    assert np.array_equal(data.lengths_E, lengths)
    assert np.array_equal(data.starts_E, np.cumsum([0, *lengths[:-1]]))
    assert np.allclose(data.returns_E, [one.episode_return for one in walks])
    assert data.success_E.dtype == bool and data.success_E.tolist() == [one.success for one in walks]
    assert data.task_E.tolist() == [one.task for one in walks]
    assert np.array_equal(data.act_out_FA, np.concatenate([one.act_out_TA for one in walks]))
    assert np.array_equal(data.act_known_F, np.concatenate([one.act_known_T for one in walks]))
    assert np.array_equal(data.reward_F, np.concatenate([one.reward_T for one in walks]))
    assert np.array_equal(np.flatnonzero(data.first_F), data.starts_E)
    ends = data.starts_E + data.lengths_E - 1
    assert np.array_equal(np.flatnonzero(data.terminal_F), ends[[one.terminal for one in walks]])
    assert np.array_equal(data.task_F, np.repeat([one.task for one in walks], lengths))


def test_videos_run_over_all_shards(world):
    whole = np.concatenate([one.frames_THWC for one in world.walks])
    assert len(world.dataset.manifest.shards) > 2
    for start, stop in ((0, len(whole)), (0, 1), (30, 95), (len(whole) - 1, len(whole)), (7, 7)):
        assert np.array_equal(world.dataset.video(start, stop), whole[start:stop])


def long_recording(length: int) -> Episode:
    return Episode(
        frames_THWC=np.random.default_rng(0).integers(256, size=(length, *FRAME), dtype=np.uint8),
        act_out_TA=np.zeros((length, 1), np.float32),
        act_known_T=np.arange(length) < length - 1,
        reward_T=np.zeros(length, np.float32),
        terminal=False,
    )


def test_frames_stay_on_the_disk(tmp_path):
    """Opening a dataset and reading some of it takes memory for the small columns, not for the frames."""
    with DatasetWriter(tmp_path, "long", FRAME, SPACE, ["only"]) as writer:
        for _ in range(2):
            writer.add(long_recording(20_000))
    frame_bytes = 40_000 * int(np.prod(FRAME))
    tracemalloc.start()
    try:
        data = EpisodeDataset.open(tmp_path)
        data.frames.take(np.arange(0, 40_000, 400))
        assert tracemalloc.get_traced_memory()[1] < frame_bytes / 4
        np.array(data.frames)  # negative control: this measure sees a copy
        assert tracemalloc.get_traced_memory()[1] > frame_bytes
    finally:
        tracemalloc.stop()


def test_frames_can_not_be_overwritten(world):
    with pytest.raises(ValueError, match="read-only"):
        world.dataset.video(0, 1)[0, 0, 0, 0] = 1


def test_a_missing_manifest_or_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.*manifest\.json"):
        EpisodeDataset.open(tmp_path / "nowhere")


def test_a_missing_shard_is_named(damaged):
    (damaged / "shard-00001.arrow").unlink()
    with pytest.raises(DataError, match=r"shard-00001\.arrow"):
        EpisodeDataset.open(damaged)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_shard_is_named(damaged, kept):
    path = damaged / "shard-00001.arrow"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"shard-00001\.arrow.*bytes, the manifest says"):
        EpisodeDataset.open(damaged)


@pytest.mark.parametrize("name", ["shard-00000.arrow", "index-00000.arrow"])
def test_a_file_of_the_right_size_that_is_not_arrow_is_named(damaged, name):
    path = damaged / name
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match=rf"{name}.*damaged"):
        EpisodeDataset.open(damaged).episode(0)


def flip_bit(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def test_a_flipped_bit_is_found_by_verification(damaged):
    path = damaged / "shard-00001.arrow"
    flip_bit(path, path.stat().st_size // 2)
    EpisodeDataset.open(damaged)  # without reading every byte it can't be seen
    with pytest.raises(DataError, match=r"shard-00001\.arrow.*checksum"):
        EpisodeDataset.open(damaged, verify=True)


@pytest.mark.parametrize("codec", [Codec(), Codec("zstd")])
def test_a_flipped_bit_in_what_is_read_is_found_while_reading(tmp_path, codec):
    """Whatever column it is in; what a reader never looks at (padding, names of columns) it doesn't compare."""
    episode = long_recording(200)
    with DatasetWriter(tmp_path, "long", FRAME, SPACE, ["only"], codec=codec) as writer:
        writer.add(episode)
    path = tmp_path / "shard-00000.arrow"
    mapped = pa.memory_map(str(path))
    origin = mapped.read_buffer().address
    batch = pa.ipc.open_file(mapped).get_batch(0)
    for name in ("act_out", "act_known", "reward", "events", "chunk_crc32", batch.schema.names[-1]):
        place = batch.column(name).buffers()[-1].address - origin
        flip_bit(path, place)
        with pytest.raises(DataError, match=r"shard-00000\.arrow.*checksum"):
            EpisodeDataset.open(tmp_path).episode(0)
        flip_bit(path, place)
    assert np.array_equal(EpisodeDataset.open(tmp_path).episode(0).frames_THWC, episode.frames_THWC)


def test_a_flipped_bit_of_the_index_is_found(damaged):
    path = damaged / "index-00001.arrow"
    flip_bit(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=r"index-00001\.arrow.*checksum"):
        EpisodeDataset.open(damaged)


def test_a_shard_of_another_dataset_is_noticed(damaged, tmp_path):
    space = ActionSpace.discrete(3, "other columns")
    assert space != SPACE and space.columns == SPACE.columns
    with DatasetWriter(tmp_path / "other", "other", (10, 8, 1), space, ["a", "b"]) as writer:
        writer.add(
            Episode(
                np.zeros((4, 10, 8, 1), np.uint8), np.zeros((4, 1), np.float32), np.arange(4) < 3, np.zeros(4), False
            )
        )
    shutil.copy(tmp_path / "other" / "shard-00000.arrow", damaged / "shard-00000.arrow")
    record = json.loads((damaged / "manifest.json").read_text())["shards"]
    record[0]["bytes"] = (damaged / "shard-00000.arrow").stat().st_size
    edit_manifest(damaged, shards=record)
    with pytest.raises(DataError, match=r"index-00000\.arrow' doesn't fit its shard|shard-00000\.arrow.*checksum"):
        EpisodeDataset.open(damaged).episode(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 1}, "of format version 1; this program reads version 2"),
        ({"format": "something"}, "not the manifest of a 'dreamer4-episodes' dataset"),
        ({"frame": [10, 8]}, "lacks a field or holds a bad one"),
        ({"actions": [{"title": "x"}]}, "lacks a field or holds a bad one"),
        ({"shards": [{"file": "shard-00000.arrow"}]}, "lacks a field or holds a bad one"),
        ({"frames": 3}, "says 12 episodes and 3 frames"),
    ],
)
def test_a_manifest_that_can_not_be_true_is_refused(damaged, changes, message):
    edit_manifest(damaged, **changes)
    with pytest.raises(DataError, match=message):
        EpisodeDataset.open(damaged)


def test_a_manifest_that_is_not_json_is_named(damaged):
    (damaged / "manifest.json").write_text('{"format":')
    with pytest.raises(DataError, match=r"manifest\.json' is not JSON"):
        EpisodeDataset.open(damaged)


def test_a_model_of_another_frame_or_action_space_does_not_fit(world):
    world.dataset.check_fits(FRAME, SPACE)
    world.dataset.check_fits(list(FRAME), ActionSpace.discrete(3))
    with pytest.raises(DataError, match=r"frames of \(10, 8, 3\), the model takes \(8, 10, 3\)"):
        world.dataset.check_fits((8, 10, 3), SPACE)
    for other in (ActionSpace.discrete(4), ActionSpace.discrete(3, "steer")):
        with pytest.raises(DataError, match="has actions"):
            world.dataset.check_fits(FRAME, other)


@pytest.mark.parametrize(("share", "held_out"), [(0.1, 2), (0.25, 6), (0.001, 1), (0.999, 23)])
def test_a_split_holds_out_whole_episodes_by_seed(world, share, held_out):
    training = world.dataset.split(share, seed=3)
    assert training.shape == (24,) and training.dtype == bool
    assert (~training).sum() == held_out
    assert np.array_equal(training, world.dataset.split(share, seed=3))
    assert any(not np.array_equal(training, world.dataset.split(share, seed)) for seed in range(4, 8))
