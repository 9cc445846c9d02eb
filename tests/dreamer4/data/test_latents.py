import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from worlds import walk, write_walks

from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.latents import (
    LatentDataset,
    finish_latents,
    latents_fingerprint,
    latents_finished,
    weights_fingerprint,
    write_latents,
)
from dreamer4.errors import DataError, RunError

SHAPE = (3, 4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> EpisodeDataset:
    return write_walks(tmp_path_factory.mktemp("episodes"), [walk(index) for index in range(20)])


def numbers(dataset: EpisodeDataset, index: int) -> np.ndarray:
    return np.random.default_rng(index).normal(size=(dataset.manifest.shards[index].frames, *SHAPE)).astype(np.float32)


def encode(folder: Path, dataset: EpisodeDataset, model: str = "model") -> np.ndarray:
    """Writes all shards, last one first, and gives what was written."""
    count = len(dataset.manifest.shards)
    for index in reversed(range(count)):
        write_latents(folder, index, numbers(dataset, index), model)
    finish_latents(folder, dataset, model)
    return np.concatenate([numbers(dataset, index) for index in range(count)])


def test_latents_lie_on_the_frame_axis_of_the_dataset(dataset, tmp_path):
    written = encode(tmp_path, dataset)
    latents = LatentDataset.open(tmp_path, dataset, "model")
    assert len(dataset.manifest.shards) > 2, "ranges run over several files"
    assert latents.frame_count == dataset.frame_count and latents.shape == SHAPE
    assert np.array_equal(latents.latents(0, dataset.frame_count), written)
    assert np.array_equal(latents.latents(35, 60), written[35:60])
    index = np.array([[0, 1, 2], [59, 3, dataset.frame_count - 1]])
    assert np.array_equal(latents.take(index), written[index])


@pytest.mark.parametrize("column", ["chunk_crc32", "latents"])
def test_a_flipped_bit_is_found_while_reading(dataset, tmp_path, column):
    encode(tmp_path, dataset)
    path = tmp_path / "shard-00001.arrow"
    data = bytearray(path.read_bytes())
    data[json.loads(path.with_suffix(".json").read_text())[column] + 1] ^= 1
    path.write_bytes(data)
    latents = LatentDataset.open(tmp_path, dataset)
    latents.latents(0, 3)
    with pytest.raises(DataError, match=r"shard-00001\.arrow' is damaged"):
        latents.latents(0, dataset.frame_count)


def test_plain_pyarrow_reads_them(dataset, tmp_path):
    written = encode(tmp_path, dataset)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["format"] == "dreamer4-latents" and manifest["model"] == "model"
    data = b"".join(
        row
        for shard in manifest["shards"]
        for row in pa.ipc.open_file(str(tmp_path / shard["file"])).read_all().column("latents").to_pylist()
    )
    assert np.array_equal(np.frombuffer(data, np.float32).reshape(-1, *SHAPE), written)


def test_a_restarted_encoder_knows_what_is_done(dataset, tmp_path):
    write_latents(tmp_path, 1, numbers(dataset, 1), "model")
    assert [latents_finished(tmp_path, index, "model") for index in range(3)] == [False, True, False]
    assert not latents_finished(tmp_path, 1, "another model")
    with pytest.raises(DataError, match=r"latents of 'shard-00000\.arrow' are not in"):
        finish_latents(tmp_path, dataset, "model")
    with pytest.raises(DataError, match=r"manifest\.json"):
        LatentDataset.open(tmp_path, dataset)
    path = tmp_path / "shard-00001.arrow"
    path.write_bytes(path.read_bytes()[:-8])
    assert not latents_finished(tmp_path, 1, "model")


def test_the_fingerprint_changes_with_weights_and_with_recordings(dataset, tmp_path):
    weights = {"a": torch.randn(3, 4), "b": torch.tensor(2), "c": torch.ones(2, dtype=torch.bfloat16)}
    model = latents_fingerprint(weights, dataset)
    assert model == latents_fingerprint(dict(reversed(weights.items())), EpisodeDataset.open(dataset.folder))
    for name in weights:
        changed = {**weights, name: weights[name] + 1}
        assert weights_fingerprint(changed) != weights_fingerprint(weights)
        assert latents_fingerprint(changed, dataset) != model
    renamed = {"d" if name == "c" else name: value for name, value in weights.items()}
    assert weights_fingerprint(renamed) != weights_fingerprint(weights)
    brighter = [replace(walk(index), frames_THWC=walk(index).frames_THWC + 1) for index in range(20)]
    assert latents_fingerprint(weights, write_walks(tmp_path, brighter)) != model


def test_latents_of_other_recordings_are_refused(dataset, tmp_path):
    """The same lengths, so only the bytes differ."""
    encode(tmp_path / "latents", dataset)
    brighter = [replace(walk(index), frames_THWC=walk(index).frames_THWC + 1) for index in range(20)]
    other = write_walks(tmp_path / "episodes", brighter)
    assert other.frame_count == dataset.frame_count
    with pytest.raises(DataError, match="not of the dataset"):
        LatentDataset.open(tmp_path / "latents", other)


def test_latents_of_another_tokenizer_are_refused_where_it_is_named(dataset, tmp_path):
    encode(tmp_path, dataset, "first")
    LatentDataset.open(tmp_path, dataset, "first")
    with pytest.raises(DataError, match="have fingerprint first, not second"):
        LatentDataset.open(tmp_path, dataset, "second")


@pytest.mark.parametrize("key", ["dataset", "frames", "model", "shards"])
def test_a_manifest_that_lacks_something_is_refused(dataset, tmp_path, key):
    encode(tmp_path, dataset)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest[key]
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=f"lacks {key}"):
        LatentDataset.open(tmp_path, dataset)


def test_latents_of_a_wrong_number_of_frames_or_shape_are_refused(dataset, tmp_path):
    encode(tmp_path, dataset)
    write_latents(tmp_path, 1, numbers(dataset, 1)[:-1], "model")
    with pytest.raises(DataError, match=r"shard-00001\.arrow' holds latents of \d+ frames"):
        finish_latents(tmp_path, dataset, "model")
    write_latents(tmp_path, 1, numbers(dataset, 1)[:, :2], "model")
    with pytest.raises(DataError, match=r"shapes \[3, 4\] and \[2, 4\]"):
        finish_latents(tmp_path, dataset, "model")


def test_a_missing_or_truncated_file_is_named(dataset, tmp_path):
    encode(tmp_path, dataset)
    path = tmp_path / "shard-00001.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"shard-00001\.arrow.*bytes, the manifest says"):
        LatentDataset.open(tmp_path, dataset)
    path.unlink()
    with pytest.raises(DataError, match=r"can't read .*shard-00001\.arrow"):
        LatentDataset.open(tmp_path, dataset)


def test_episodes_are_not_taken_for_latents(dataset):
    with pytest.raises(DataError, match="not the manifest of a 'dreamer4-latents' dataset"):
        LatentDataset.open(dataset.folder, dataset)


def test_a_folder_that_can_not_be_written_is_named(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file/latents"):
        write_latents(tmp_path / "file" / "latents", 0, numbers(dataset, 0), "model")
