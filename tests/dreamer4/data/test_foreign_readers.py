"""The files are read without this program: by pyarrow (see also test_writer), and by Hugging Face datasets."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from worlds import FRAME, SPACE, walk

from dreamer4.data.codecs import Codec
from dreamer4.data.writer import DatasetWriter


def write(folder: Path, codec: Codec) -> list[str]:
    with DatasetWriter(folder, "walk", FRAME, SPACE, ["even", "odd"], shard_frames=40, codec=codec) as writer:
        for index in range(8):
            writer.add(walk(index))
    return sorted(str(path) for path in folder.glob("shard-*.arrow"))


WHOLE = np.concatenate([walk(index).frames_THWC for index in range(8)])


def unpacked(rows: list[dict]) -> np.ndarray:
    """As docs/data-format.md says it, with pyarrow only."""
    chunks, lengths = [], []
    for row in rows:
        if row["chunk"] is not None:
            chunks.append(row["chunk"])
            lengths.append(0)
        lengths[-1] += 1
    size = int(np.prod(FRAME))
    frames = [pa.decompress(blob, n * size, "zstd") for blob, n in zip(chunks, lengths, strict=True)]
    return np.concatenate([np.frombuffer(one, np.uint8).reshape(-1, *FRAME) for one in frames])


def test_pyarrow_unpacks_chunks(tmp_path):
    tables = [pa.ipc.open_file(path).read_all() for path in write(tmp_path, Codec("zstd", chunk=7))]
    assert np.array_equal(unpacked([row for table in tables for row in table.to_pylist()]), WHOLE)


def test_hugging_face_datasets_loads_both_layouts(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets", reason="of the extra 'test'")
    options = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    raw = datasets.load_dataset("arrow", data_files=write(tmp_path / "raw", Codec()), **options)
    assert np.array_equal(np.frombuffer(b"".join(raw["frame"]), np.uint8).reshape(-1, *FRAME), WHOLE)
    packed = datasets.load_dataset("arrow", data_files=write(tmp_path / "packed", Codec("zstd")), **options)
    assert np.array_equal(unpacked(list(packed)), WHOLE)
    assert np.array_equal(packed["act_out"], np.concatenate([walk(index).act_out_TA for index in range(8)]))
    assert set(packed["source"]) == {"test"}
