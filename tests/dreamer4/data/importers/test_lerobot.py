import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from recordings import imported, stamps, write_lerobot

from dreamer4.actions import Part
from dreamer4.data.importers.importer import Options
from dreamer4.data.importers.lerobot import LeRobotImporter
from dreamer4.errors import DataError

LENGTHS = (33, 7, 20, 3, 41)


@pytest.mark.parametrize("filmed", [True, False])
def test_episodes_are_found_in_files_that_hold_several(tmp_path, filmed):
    """Continuous actions as they are; frame t with row t; tasks by their number."""
    acts = write_lerobot(tmp_path, LENGTHS, filmed=filmed)
    importer = LeRobotImporter(tmp_path, Options())
    assert importer.recording.actions.parts == (Part("action", "continuous", 3),)
    assert (importer.recording.env, importer.recording.tasks) == ("arm", ("push", "pull"))
    assert importer.recording.frame == (64, 96, 3)
    for number, source in enumerate(importer.sources()):
        (episode,) = imported(importer, source)
        assert stamps(episode.frames_THWC) == [64 * number + t for t in range(LENGTHS[number])]
        assert np.array_equal(episode.act_out_TA, np.where(episode.act_known_T[:, None], acts[number], 0))
        assert episode.act_known_T.sum() == LENGTHS[number] - 1
        assert (episode.task, episode.success) == (number % 2, number % 2 == 0)


def test_rewards_arrive_with_the_next_frame_and_the_last_one_with_the_last(tmp_path):
    """Negative control: taken as they are stored, the first frame would have a reward."""
    write_lerobot(tmp_path, (5,))
    (episode,) = imported(LeRobotImporter(tmp_path, Options()), "episode-000000")
    assert episode.reward_T.tolist() == [0.0, 0.25, 0.0, 0.0, 1.0]
    assert episode.terminal


def test_episodes_of_one_frame_are_kept(tmp_path):
    write_lerobot(tmp_path, (2,))
    entries = tmp_path / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    data = tmp_path / "data" / "chunk-000" / "file-000.parquet"
    pq.write_table(pq.read_table(data).slice(0, 1), data)
    table = pq.read_table(entries)
    pq.write_table(table.set_column(table.column_names.index("length"), "length", [[1]]), entries)
    (episode,) = imported(LeRobotImporter(tmp_path, Options()), "episode-000000")
    assert (episode.length, episode.act_known_T.any()) == (1, False)


def test_the_camera_has_to_be_chosen_among_several(tmp_path):
    write_lerobot(tmp_path, (5,))
    path = tmp_path / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["features"]["observation.images.wrist"] = {"dtype": "video", "shape": [64, 96, 3]}
    path.write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"cameras observation.images.front, observation.images.wrist: choose one"):
        LeRobotImporter(tmp_path, Options())
    assert imported(LeRobotImporter(tmp_path, Options(key="observation.images.front")), "episode-000000")


def test_missing_and_damaged_parts_are_named(tmp_path):
    write_lerobot(tmp_path, (30, 30, 30), per_file=1)
    importer = LeRobotImporter(tmp_path, Options())
    film = tmp_path / "videos" / "observation.images.front" / "chunk-000" / "file-000.mp4"
    film.write_bytes(film.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"file-000\.mp4' is damaged"):
        imported(importer, "episode-000000")
    data = tmp_path / "data" / "chunk-000" / "file-001.parquet"
    pq.write_table(pq.read_table(data).slice(0, 20), data)
    with pytest.raises(DataError, match=r"file-001\.parquet' has 20 rows of episode 1, 30 are promised"):
        imported(importer, "episode-000001")
    data = tmp_path / "data" / "chunk-000" / "file-002.parquet"
    data.write_bytes(data.read_bytes()[:500])
    with pytest.raises(DataError, match=r"file-002\.parquet' is missing, damaged"):
        imported(importer, "episode-000002")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebase_version": "v2.1"}, "v3 is read"),
        ({"fps": 0}, "not the description"),
        ({"features": []}, "not the description"),
        ({"features": {"action": {"shape": [3]}}}, "has cameras none"),
        ({"features": {"front": {"dtype": "image"}, "action": {}}}, "gives actions the shape None"),
        ({"features": {"front": {"dtype": "image"}, "action": {"shape": [10**12]}}}, r"the shape \[1000000000000\]"),
        ({"features": {"front": {"dtype": "image"}, "action": {"shape": [1000] * 9}}}, r"the shape \[1000, "),
        ({"data_path": "../{chunk_index}/x.parquet"}, "leads out of the dataset"),
        ({"data_path": "{nothing}"}, "'data_path' is"),
    ],
)
def test_impossible_descriptions_are_refused(tmp_path, change, message):
    write_lerobot(tmp_path, (5,))
    path = tmp_path / "meta" / "info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        imported(LeRobotImporter(tmp_path, Options()), "episode-000000")
