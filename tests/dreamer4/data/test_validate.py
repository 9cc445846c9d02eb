"""`dreamer4.data.validate`: every fault is found and named, right datasets have none, and good episodes survive."""

import json
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from states import assert_equal
from worlds import FRAME, SPACE, walk

from dreamer4.data.codecs import Codec
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.index import write_index
from dreamer4.data.schema import MANIFEST, Shard
from dreamer4.data.validate import Validation, take_out, validate
from dreamer4.data.writer import DatasetWriter
from dreamer4.errors import ConfigError, DataError
from dreamer4.files import read_json, write_json
from dreamer4.types import Episode

CODECS = {"raw": Codec(chunk=4), "zstd": Codec("zstd", chunk=4)}


def write(folder: Path, episodes: Sequence[Episode], codec: Codec = CODECS["zstd"], frames: int = 40) -> Path:
    with DatasetWriter(folder, "walk", FRAME, SPACE, ["even", "odd"], frames, codec) as writer:
        for episode in episodes:
            writer.add(episode)
    return folder


def walks(count: int = 16) -> list[Episode]:
    return [walk(number) for number in range(count)]


@pytest.fixture(params=CODECS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path / "data", walks(), CODECS[request.param])


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that writes what it is given."""
    monkeypatch.setattr("dreamer4.data.spool.check_part", lambda *_, **__: None)


def kinds(validation: Validation) -> dict[str, list[int | None]]:
    """Episodes by kind of fault."""
    found: dict[str, list[int | None]] = {}
    for fault in validation.faults:
        found.setdefault(fault.kind, []).append(fault.episode)
    return found


def survivors(folder: Path) -> list[Episode]:
    data = EpisodeDataset.open(folder, verify=True)
    return [data.episode(number) for number in range(data.episode_count)]


def assert_survive(folder: Path, wanted: Sequence[Episode]) -> None:
    found = survivors(folder)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert_equal(vars(one), vars(other))


def test_right_dataset_has_no_fault_and_is_left_alone(folder):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    found = validate(folder)
    assert found.faults == [] and sum(map(len, found.good)) == 16
    assert take_out(folder, found) is None
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("cut", [1, 500, 5000])
def test_truncated_shard_loses_only_what_was_cut(folder, cut):
    data = EpisodeDataset.open(folder)
    shard = data.manifest.shards[1]
    path = folder / shard.file
    path.write_bytes(path.read_bytes()[:-cut])
    found = validate(folder)
    assert [fault.file for fault in found.faults if fault.kind == "truncated"] == [shard.file]
    assert len(found.good[0]) == data.manifest.shards[0].episodes
    good = [shard.first_episode + e for shard, some in zip(data.manifest.shards, found.good, strict=True) for e in some]
    aside = take_out(folder, found)
    assert aside is not None and (aside / shard.file).stat().st_size == shard.bytes - cut
    assert validate(folder).faults == []
    assert_survive(folder, [walk(number) for number in good])
    assert cut > 1 or len(good) == 16  # the footer isn't needed


def test_changed_frame_costs_one_episode(folder):
    data = EpisodeDataset.open(folder)
    shard, block = data.manifest.shards[0], data.frames.blocks.table
    path = folder / shard.file
    content = bytearray(path.read_bytes())
    content[int(block["frames"][0]) + 5] ^= 4
    path.write_bytes(content)
    found = validate(folder)
    assert kinds(found) == {"checksum": [None], "frames": [0]}
    take_out(folder, found)
    assert validate(folder).faults == []
    assert_survive(folder, walks()[1:])


def test_missing_shard_and_damaged_index_cost_their_shard(folder):
    data = EpisodeDataset.open(folder)
    first, second, *others = data.manifest.shards
    (folder / first.file).unlink()
    (folder / second.index).write_bytes(b"ARROW1" + bytes(second.index_bytes - 6))
    found = validate(folder)
    assert {"missing", "index"} <= kinds(found).keys()
    assert found.good[:2] == ((), ()) and others
    take_out(folder, found)
    assert_survive(folder, walks()[first.episodes + second.episodes :])


def test_dataset_without_a_manifest_or_anything_good_is_reported_and_not_changed(folder):
    for path in folder.glob("index-*"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="is good: nothing is changed"):
        take_out(folder, validate(folder))
    (folder / MANIFEST).write_text("{")
    found = validate(folder)
    assert list(kinds(found)) == ["manifest"]
    with pytest.raises(DataError, match="can't be repaired"):
        take_out(folder, found)


def changed(number: int, **columns: tuple[int, float]) -> Episode:
    """A walk with one value of some columns changed."""
    episode = walk(number)
    for name, (row, value) in columns.items():
        array = getattr(episode, name).copy()
        array[row] = value
        episode = replace(episode, **{name: array})
    return episode


WRONG = {
    "not finite": [changed(3, act_out_TA=(0, np.nan)), changed(3, reward_T=(1, np.inf))],
    "action": [changed(3, act_out_TA=(1, 7)), changed(3, act_out_TA=(0, 0.5)), changed(3, act_out_TA=(0, -1))],
    "misaligned": [changed(3, reward_T=(0, 1.0)), changed(3, act_known_T=(-1, 1))],
}


@pytest.mark.parametrize(("kind", "wrong"), [(kind, one) for kind, some in WRONG.items() for one in some])
def test_wrong_rows_are_found_by_episode_and_row(tmp_path, unchecked, kind, wrong):
    episodes = [*walks(3), wrong, walk(4)]
    folder = write(tmp_path / "data", episodes)
    found = validate(folder)
    assert kinds(found) == {kind: [3]}
    assert found.faults[0].row is not None
    take_out(folder, found)
    assert_survive(folder, [*walks(3), walk(4)])


def test_dead_video_and_duplicates_are_found_and_can_be_allowed(tmp_path):
    still = next(one for one in (walk(number, 12) for number in range(99)) if one.length > 8)
    dead = replace(still, frames_THWC=np.repeat(still.frames_THWC[:1], still.length, axis=0))
    folder = write(tmp_path / "data", [*walks(4), dead, walk(2), still])
    found = validate(folder)
    assert kinds(found) == {"dead": [4], "duplicate": [5]}
    assert "is episode 2 again" in str(found.faults[1])
    allowed = validate(folder, allow=["dead", "duplicate"])
    assert allowed.faults == [] and len(allowed.accepted) == 2 and sum(map(len, allowed.good)) == 7
    take_out(folder, validate(folder, allow=["dead"]))
    assert_survive(folder, [*walks(4), dead, still])
    with pytest.raises(ConfigError, match="did you mean 'dead'"):
        validate(folder, allow=["deed"])


def test_index_that_contradicts_its_shard_is_found(tmp_path, monkeypatch):
    """Checksums are right; only the columns tell."""

    def lie(path: Path, episodes, shard: Path) -> None:
        write_index(path, [replace(episodes[0], task=1 - episodes[0].task), *episodes[1:]], shard)

    monkeypatch.setattr("dreamer4.data.shard_writer.write_index", lie)
    folder = write(tmp_path / "data", walks(5), frames=1000)
    found = validate(folder)
    assert kinds(found) == {"columns": [0]} and "'task'" in found.faults[0].text


def test_sums_of_the_manifest_are_compared(folder):
    manifest = read_json(folder / MANIFEST)
    manifest["shards"][0]["successes"] += 1
    manifest["statistics"]["success_share"] += 1 / manifest["episodes"]
    write_json(folder / MANIFEST, manifest)
    found = validate(folder)
    assert list(kinds(found)) == ["statistics"] and sum(map(len, found.good)) == 16
    take_out(folder, found)
    assert validate(folder).faults == []
    assert_survive(folder, walks())


def test_quarantine_keeps_the_former_dataset_and_can_be_added_to(folder):
    data = EpisodeDataset.open(folder)
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    path = folder / data.manifest.shards[0].file
    path.write_bytes(path.read_bytes()[:-5000])
    content[path.name] = path.read_bytes()
    aside = take_out(folder, validate(folder))
    assert aside is not None
    assert {name: (aside / name).read_bytes() for name in content} == content
    assert json.loads((aside / "faults.json").read_text())[0]["file"] == path.name
    left = survivors(folder)
    write(folder, [walk(50)], data.manifest.recording.codec)
    assert_survive(folder, [*left, walk(50)])
    assert validate(folder).faults == []


def test_interrupted_quarantine_changes_nothing(folder, monkeypatch):
    path = folder / EpisodeDataset.open(folder).manifest.shards[0].file
    path.write_bytes(path.read_bytes()[:-5000])
    before, found = (folder / MANIFEST).read_bytes(), validate(folder)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dreamer4.data.quarantine.keep_aside", killed)
        with pytest.raises(KeyboardInterrupt):
            take_out(folder, found)
    assert (folder / MANIFEST).read_bytes() == before
    again = validate(folder)
    assert again.faults == found.faults and again.good == found.good
    take_out(folder, again)
    assert validate(folder).faults == []


def test_video_survives_quarantine_bit_for_bit(tmp_path):
    pytest.importorskip("av")
    codec, random = Codec("h264", chunk=4), np.random.default_rng(0)
    episodes = []
    for number in range(3):
        video = np.cumsum(random.integers(0, 9, (10, 32, 48, 3)), axis=0).astype(np.uint8)
        known = np.arange(10) < 9
        acts = np.zeros((10, 1), np.float32)
        episodes.append(Episode(video, acts, known, np.zeros(10, np.float32), terminal=False, task=number % 2))
    folder = tmp_path / "data"
    with DatasetWriter(folder, "film", (32, 48, 3), SPACE, ["even", "odd"], codec=codec) as writer:
        for episode in episodes:
            writer.add(episode)
    before = survivors(folder)
    data = EpisodeDataset.open(folder)
    path = folder / data.manifest.shards[0].file
    content = bytearray(path.read_bytes())
    content[int(data.frames.blocks.table["frames"][0]) + 100] ^= 1
    path.write_bytes(content)
    take_out(folder, validate(folder))
    assert_survive(folder, before[1:])
    assert "psnr_db" in EpisodeDataset.open(folder).manifest.statistics


def hostile(folder: Path, column: str, value: object) -> Shard:
    """Changes a column of the first shard, with size and checksum in the manifest made right."""
    data = EpisodeDataset.open(folder)
    shard = data.manifest.shards[0]
    with pa.ipc.open_file(str(folder / shard.file)) as reader:
        table = reader.read_all()
    place = table.schema.get_field_index(column)
    values = table.column(column).to_pylist()
    values[0] = value
    table = table.set_column(place, table.schema.field(column), pa.array(values, table.schema.field(column).type))
    with pa.OSFile(str(folder / shard.file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    content = (folder / shard.file).read_bytes()
    manifest = read_json(folder / MANIFEST)
    manifest["shards"][0].update(bytes=len(content), crc32=zlib.crc32(content))
    write_json(folder / MANIFEST, manifest)
    return shard


@pytest.mark.parametrize(("column", "value"), [("first", False), ("episode", 7), ("success", True), ("task", 1)])
def test_columns_for_other_programs_are_checked(tmp_path, column, value):
    folder = write(tmp_path / "data", walks(4), CODECS["raw"], frames=1000)
    if column == "success":
        value = not EpisodeDataset.open(folder).success_E[0]
    shard = hostile(folder, column, value)
    assert any(fault.file in (shard.file, shard.index) for fault in validate(folder).faults)


def test_copy_of_a_dataset_with_swapped_shards_is_found(folder, tmp_path):
    data = EpisodeDataset.open(folder)
    one, other = (folder / shard.file for shard in data.manifest.shards[:2])
    shutil.move(one, tmp_path / "kept")
    shutil.move(other, one)
    shutil.move(tmp_path / "kept", other)
    found = validate(folder)
    assert {fault.file for fault in found.faults} >= {one.name, other.name}
    assert found.good[0] == found.good[1] == ()
