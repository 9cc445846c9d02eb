"""Datasets that Minari itself writes here, in all of its formats."""

import json
import shutil

import h5py
import numpy as np
import pytest
from gymnasium import spaces
from minari_files import PICTURE, write_endless
from minari_files import write_minari_dataset as write
from recordings import imported, stamped, stamps

from dreamer4.actions import Part
from dreamer4.data.importers.hdf5 import Hdf5Reader
from dreamer4.data.importers.importer import Options
from dreamer4.data.importers.minari import MinariImporter
from dreamer4.errors import DataError


@pytest.mark.parametrize("form", ["hdf5", "arrow", "parquet"])
@pytest.mark.parametrize("jpeg", [True, False])
def test_episodes_of_every_format_are_imported(tmp_path, form, jpeg):
    """An action's reward arrives with the next frame, and the last frame is kept."""
    folder, drawn = write(tmp_path, form, jpeg)
    importer = MinariImporter(folder, Options())
    assert importer.sources() == ["episode-000000", "episode-000001"]
    assert importer.recording.frame == (64, 96, 3)
    assert importer.recording.actions.parts == (Part("action", "categorical", 5),)
    ((one,), (two,)) = (imported(importer, source) for source in importer.sources())
    assert stamps(one.frames_THWC) == list(range(71))
    assert stamps(two.frames_THWC) == list(range(128, 134))
    assert one.act_out_TA[:-1, 0].tolist() == [act - 2 for act in drawn[0]]
    assert one.act_known_T.tolist() == [True] * 70 + [False]
    assert one.reward_T.tolist() == [0.0, *range(70)]
    assert (one.terminal, one.truncated, two.terminal, two.truncated) == (True, False, False, True)
    if not jpeg:
        assert np.array_equal(one.frames_THWC[7], stamped(7))


@pytest.mark.parametrize("form", ["hdf5", "arrow"])
def test_pictures_are_found_among_other_observations_and_tuples_of_actions_are_parts(tmp_path, form):
    seen = spaces.Dict({"image": PICTURE, "speed": spaces.Box(-1, 1, (2,), np.float32)})
    acts = spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)))
    folder, drawn = write(tmp_path, form, True, seen, acts)
    importer = MinariImporter(folder, Options())
    (one,) = imported(importer, "episode-000000")
    assert stamps(one.frames_THWC) == list(range(71))
    assert one.act_out_TA[3] == pytest.approx(np.array([drawn[0][3][0], *drawn[0][3][1]], np.float32))
    with pytest.raises(DataError, match="are of image, speed: say which"):
        imported(MinariImporter(folder, Options(key="camera")), "episode-000000")


def test_datasets_without_pictures_are_refused(tmp_path):
    folder, _ = write(tmp_path, "hdf5", True)
    metadata = folder / "data" / "metadata.json"
    whole = json.loads(metadata.read_text())
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_0/observations"]
        file["episode_0/observations"] = np.zeros((71, 17), np.float64)
    with pytest.raises(DataError, match="not images"):
        imported(MinariImporter(folder, Options()), "episode-000000")
    for change in ({"total_episodes": -3}, {"total_episodes": "x"}, {"action_space": "{}"}, {"action_space": 3}):
        metadata.write_text(json.dumps({**whole, **change}))
        with pytest.raises(DataError):
            MinariImporter(folder, Options())
    metadata.unlink()
    with pytest.raises(DataError, match="not the metadata of a Minari dataset"):
        MinariImporter(folder, Options())


@pytest.mark.parametrize("form", ["hdf5", "arrow"])
def test_missing_and_damaged_episodes_are_named(tmp_path, form):
    folder, _ = write(tmp_path, form, True)
    metadata = folder / "data" / "metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "total_episodes": 3}))
    with pytest.raises(DataError, match="data"):
        imported(MinariImporter(folder, Options()), "episode-000002")
    if form == "hdf5":
        path = folder / "data" / "main_data.hdf5"
        path.write_bytes(path.read_bytes()[:3000])
    else:
        shutil.rmtree(folder / "data" / "0")
    with pytest.raises(DataError, match=r"is damaged|holds no"):
        imported(MinariImporter(folder, Options()), "episode-000000")


def test_an_hdf5_file_that_is_read_for_ever_is_an_error_and_others_can_still_be_read(tmp_path):
    importer = MinariImporter(write_endless(tmp_path), Options(patience=1))
    assert len(imported(importer, "episode-000000")) == 1
    with pytest.raises(DataError, match=r"main_data.hdf5' is damaged.*episode_1/observations.* didn't end within 1 s"):
        imported(importer, "episode-000001")
    assert stamps(imported(importer, "episode-000002")[0].frames_THWC) == list(range(256, 262))


def test_an_hdf5_library_that_crashes_is_an_error(tmp_path):
    folder, _ = write(tmp_path, "hdf5", True, lengths=(5,))
    reader = Hdf5Reader(folder / "data" / "main_data.hdf5")
    assert reader.length("episode_0/rewards") == 5
    assert reader._process is not None
    reader._process.kill()
    with pytest.raises(DataError, match=r"ended its process \(-9\)"):
        reader.length("episode_0/rewards")
    assert reader.length("episode_0/rewards") == 5


def test_larger_hdf5_files_are_given_longer(tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    for path, size in ((small, 1), (large, 1 << 40)):
        with open(path, "wb") as file:
            file.truncate(size)
    assert 60 < Hdf5Reader(small).seconds < 61
    assert Hdf5Reader(large).seconds > 3600
    assert Hdf5Reader(large, 5).seconds == 5
