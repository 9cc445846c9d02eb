from pathlib import Path

import pytest
import torch
from states import assert_equal

from dreamer4.checkpoint import RECORD, Checkpoints
from dreamer4.errors import CheckpointError, RunError
from dreamer4.mirror import Mirror

CONFIG = {"optim": {"lr": 1e-3}}


@pytest.fixture(params=["file", "memory"])
def mirror(request: pytest.FixtureRequest, tmp_path: Path) -> Mirror:
    """On a file system that pyarrow knows, and on one that only fsspec knows."""
    return Mirror(f"file://{tmp_path}/there/agent" if request.param == "file" else f"memory://{tmp_path}/agent")


@pytest.fixture
def here(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "here")


def save(checkpoints: Checkpoints, step: int, number: float | None = None) -> Path:
    value = torch.full((3,), float(step if number is None else number))
    return checkpoints.save(step, {"w": value}, {"moments": {0: value * 2}, "step": step}, CONFIG)


def test_a_checkpoint_comes_back_as_it_was(mirror, here, tmp_path):
    mirror.push(save(here, 7))
    elsewhere = Checkpoints(tmp_path / "elsewhere")
    mirror.pull(7, elsewhere)
    expected, found = here.load(), elsewhere.load(config=CONFIG)
    assert (found.step, found.state["step"]) == (7, 7)
    assert_equal({**expected.weights, "state": expected.state}, {**found.weights, "state": found.state})


def test_nothing_is_there_at_first(mirror):
    assert mirror.steps() == [] and mirror.latest() is None


def test_the_newest_are_kept(mirror, here):
    for step in (5, 10, 15):
        mirror.push(save(here, step))
    assert mirror.steps() == [10, 15] and mirror.latest() == 15


def test_a_step_that_is_done_again_takes_the_place_of_the_former(mirror, here, tmp_path):
    for number in (1, 2):
        mirror.push(save(here, 5, number))
    elsewhere = Checkpoints(tmp_path / "elsewhere")
    mirror.pull(5, elsewhere)
    assert mirror.steps() == [5] and float(elsewhere.load().weights["w"][0]) == 2


@pytest.mark.parametrize("lost", ["weights.safetensors", "state.safetensors", RECORD])
def test_a_copy_that_was_cut_off_does_not_count(mirror, here, lost):
    """A writer killed before the record leaves the former checkpoint the latest; so does one that replaces a step."""
    mirror.push(save(here, 5))
    folder = save(here, 10)
    (folder / lost).unlink()
    with pytest.raises(RunError, match="can't use"):
        mirror.push(folder)
    assert mirror.latest() == 5
    mirror.push(save(here, 10))
    (here.folder / "00000010" / lost).unlink()
    with pytest.raises(RunError):
        mirror.push(here.folder / "00000010")
    assert mirror.latest() == 5


def test_damage_on_the_way_is_found(mirror, here, tmp_path):
    folder = save(here, 5)
    mirror.push(folder)
    with mirror.files.open_output_stream(f"{mirror.root}/00000005/weights.safetensors") as sink:
        sink.write((folder / "weights.safetensors").read_bytes()[:-1] + b"\x7f")
    elsewhere = Checkpoints(tmp_path / "elsewhere")
    mirror.pull(5, elsewhere)
    with pytest.raises(CheckpointError, match="damaged"):
        elsewhere.load()


def test_a_step_that_is_not_there_leaves_nothing_behind(mirror, here):
    with pytest.raises(RunError, match="can't use"):
        mirror.pull(3, here)
    assert here.steps() == [] and list(here.folder.iterdir()) == []


@pytest.mark.parametrize("url", ["nowhere://bucket/x", "relative/folder"])
def test_a_file_system_that_nobody_knows_is_named(url):
    with pytest.raises(RunError, match=f"can't use '{url}' for checkpoints: "):
        Mirror(url)


def test_a_place_that_can_not_be_written_is_named(here, tmp_path):
    (tmp_path / "file").touch()
    mirror = Mirror(f"file://{tmp_path}/file")
    with pytest.raises(RunError, match=f"can't use 'file://{tmp_path}/file' for checkpoints"):
        mirror.push(save(here, 1))
