"""Latents of a dataset on disk: one Arrow file per shard of the episodes, aligned with its frame axis.

The manifest remembers which frames (the dataset's fingerprint) and which tokenizer (a fingerprint of its weights) they
are of, so that neither can be exchanged unnoticed.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.rows import Rows
from dreamer4.data.schema import MANIFEST, binary_rows, open_arrow, read_manifest, shard_name
from dreamer4.errors import DataError
from dreamer4.files import read_json, replacing, write_json

FORMAT = "dreamer4-latents"
FORMAT_VERSION = 1


def weights_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Eight hexadecimal digits that change with any number of a model."""
    checksum = 0
    for name in sorted(weights):
        checksum = zlib.crc32(name.encode(), checksum)
        numbers = weights[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        checksum = zlib.crc32(numbers.numpy().data, checksum)
    return f"{checksum:08x}"


def latents_fingerprint(weights: Mapping[str, Tensor], dataset: EpisodeDataset) -> str:
    """What latents are a function of: the tokenizer's weights and every byte of the dataset.

    A restarted encoder that goes by this name can't take latents of former recordings for its own.
    """
    return f"{weights_fingerprint(weights)}-{dataset.manifest.fingerprint}"


def write_latents(folder: Path, index: int, latents_FSD: np.ndarray, model: str) -> None:
    """Writes the latents `[F, S, D]` float32 of shard number `index`; whole or not at all.

    Args:
        model: `latents_fingerprint` of tokenizer and dataset.

    Raises:
        RunError: the disk is full or can't be written.
    """
    path = Path(folder) / shard_name(index)
    width = int(np.prod(latents_FSD.shape[1:])) * 4
    data = pa.py_buffer(np.ascontiguousarray(latents_FSD, np.float32))
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(latents_FSD), [None, data])
    batch = pa.RecordBatch.from_arrays([column], schema=_schema(width))
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as file,
    ):
        file.write_batch(batch)
    record = {"frames": len(latents_FSD), "shape": list(latents_FSD.shape[1:]), "bytes": path.stat().st_size}
    write_json(path.with_suffix(".json"), {**record, "model": model})


def latents_finished(folder: Path, index: int, model: str) -> bool:
    """Whether a shard's latents of this fingerprint are there: what a restarted encoder need not do again."""
    path = Path(folder) / shard_name(index)
    if not path.is_file() or not path.with_suffix(".json").is_file():
        return False
    record = read_json(path.with_suffix(".json"))
    return record["model"] == model and record["bytes"] == path.stat().st_size


def finish_latents(folder: Path, dataset: EpisodeDataset, model: str) -> None:
    """Writes the manifest after all shards.

    Raises:
        DataError: a shard is missing, of another fingerprint, or has another number of frames than the dataset's.
    """
    shards = []
    for index, shard in enumerate(dataset.manifest.shards):
        if not latents_finished(folder, index, model):
            raise DataError(f"the latents of '{shard.file}' are not in '{folder}'; encode it first")
        record = read_json((Path(folder) / shard_name(index)).with_suffix(".json"))
        if record["frames"] != shard.frames:
            raise DataError(
                f"'{Path(folder) / shard_name(index)}' holds latents of {record['frames']} frames, '{shard.file}' of "
                f"'{dataset.folder}' has {shard.frames} frames: encode it again"
            )
        if shards and record["shape"] != shards[0]["shape"]:
            shapes = f"{shards[0]['shape']} and {record['shape']}"
            raise DataError(f"'{folder}' holds latents of shapes {shapes}: encode it again")
        shards.append({"file": shard_name(index), **record})
    manifest = {"format": FORMAT, "version": FORMAT_VERSION, "model": model, "dataset": dataset.manifest.fingerprint}
    write_json(Path(folder) / MANIFEST, {**manifest, "frames": dataset.frame_count, "shards": shards})


class LatentDataset:
    """Memory-mapped latents on the frame axis of a dataset."""

    def __init__(self, pieces: list[np.ndarray], model: str):
        self.rows, self.model = Rows(pieces), model

    @classmethod
    def open(cls, folder: Path | str, dataset: EpisodeDataset, model: str | None = None) -> Self:
        """Opens the latents of a dataset.

        Args:
            model: fingerprint that they have to have.

        Raises:
            DataError: they are missing, damaged, or of another dataset or tokenizer.
        """
        folder = Path(folder)
        manifest = read_manifest(folder / MANIFEST, FORMAT, FORMAT_VERSION)
        if manifest["dataset"] != dataset.manifest.fingerprint or manifest["frames"] != dataset.frame_count:
            raise DataError(f"the latents in '{folder}' are not of the dataset in '{dataset.folder}': encode it again")
        if model is not None and manifest["model"] != model:
            raise DataError(
                f"the latents in '{folder}' have fingerprint {manifest['model']}, not {model}: encode it again"
            )
        pieces = []
        for shard in manifest["shards"]:
            shape, dtype = tuple(shard["shape"]), np.dtype(np.float32)
            reader = open_arrow(folder / shard["file"], shard["bytes"], _schema(int(np.prod(shape)) * 4))
            pieces += [
                binary_rows(reader.get_batch(i).column("latents"), dtype, shape)
                for i in range(reader.num_record_batches)
            ]
        return cls(pieces, manifest["model"])

    @property
    def frame_count(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        """`S, D`."""
        return self.rows.shape[1], self.rows.shape[2]

    def latents(self, start: int, stop: int) -> np.ndarray:
        """`[T, S, D]` of frames `start` to `stop - 1`; a view of the file where possible."""
        return self.rows.between(start, stop)

    def take(self, frame_BT: np.ndarray) -> np.ndarray:
        """`[B, T, S, D]` of frames at any positions, a copy."""
        return self.rows.take(frame_BT)


def _schema(width: int) -> pa.Schema:
    return pa.schema([pa.field("latents", pa.binary(width), nullable=False)])
