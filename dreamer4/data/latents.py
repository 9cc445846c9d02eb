"""Latents of a dataset: one Arrow file per shard of the episodes, aligned with its frame axis, read by ranges.

Every `CHUNK` rows have a checksum, which is compared the first time that one of them is read. The manifest remembers
which frames (the dataset's fingerprint) and which tokenizer (a fingerprint of its weights) the latents are of, so that
neither can be exchanged unnoticed.
"""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from dreamer4.data.blocks import OPEN_FILES
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.rows import Rows, runs
from dreamer4.data.schema import MANIFEST, check_size, read_manifest, shard_name
from dreamer4.data.storage import Folder, RangeFile, Recent, folder_at, local_path
from dreamer4.errors import DataError
from dreamer4.files import read_json, replacing, write_json

FORMAT = "dreamer4-latents"
FORMAT_VERSION = 2
CHUNK = 64  # rows with one checksum


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
    path = local_path(folder) / shard_name(index)
    latents_FSD = np.ascontiguousarray(latents_FSD, np.float32)
    width, count = int(np.prod(latents_FSD.shape[1:])) * 4, len(latents_FSD)
    sums = np.zeros(count, np.uint32)
    sums[::CHUNK] = [zlib.crc32(latents_FSD[start : start + CHUNK].data) for start in range(0, count, CHUNK)]
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), count, [None, pa.py_buffer(latents_FSD)])
    batch = pa.RecordBatch.from_arrays([pa.array(sums), column], schema=_schema(width))
    with replacing(path) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as file:
            file.write_batch(batch)
        places = _locate(temporary)
    record = {
        "frames": count,
        "shape": list(latents_FSD.shape[1:]),
        "bytes": path.stat().st_size,
        **places,
        "sums_crc32": zlib.crc32(sums.data),
    }
    write_json(path.with_suffix(".json"), {**record, "model": model})


def _locate(path: Path) -> dict[str, int]:
    """Bytes of the file at which the checksums and the latents begin."""
    with pa.memory_map(str(path)) as mapped:
        origin = mapped.read_buffer().address
        mapped.seek(0)
        batch = pa.ipc.open_file(mapped).get_batch(0)
        return {name: batch.column(name).buffers()[-1].address - origin for name in batch.schema.names}


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


class LatentFiles(Rows):
    """Latents `[F, S, D]` in files. Threads may share it.

    Raises:
        DataError: a file is missing or of another size, or its record says what can't be true; the message names it.
    """

    def __init__(self, folder: Folder, shards: Sequence[Mapping[str, Any]]):
        self.folder, self.shards = folder, shards
        try:
            counts = np.array([shard["frames"] for shard in shards], np.int64)
            shape = tuple(shards[0]["shape"])
            self._width = int(np.prod(shape)) * 4
            for shard in shards:
                check_size(folder, shard["file"], shard["bytes"])
                ends = [shard["latents"] + shard["frames"] * self._width, shard["chunk_crc32"] + shard["frames"] * 4]
                if tuple(shard["shape"]) != shape or shard["frames"] < 1 or max(ends) > shard["bytes"] or min(ends) < 0:
                    raise ValueError(f"the record of '{shard['file']}' can't be true")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"'{folder.name}/{MANIFEST}' lacks a field or holds a bad one: {error}") from error
        self.ends = np.cumsum(counts)
        self.shape, self.dtype = (int(self.ends[-1]), *shape), np.dtype(np.float32)
        self._files, self._sums = Recent[RangeFile](OPEN_FILES), Recent[np.ndarray](OPEN_FILES)
        chunks = -(-counts // CHUNK)
        self._chunks_before, self._checked = np.cumsum(chunks) - chunks, np.zeros(int(chunks.sum()), bool)

    def take(self, index: np.ndarray) -> np.ndarray:
        """Raises `DataError`, naming file and byte, if a chunk doesn't have its checksum."""
        self.check(index)
        flat = index.reshape(-1)
        result = np.empty((flat.size, *self.shape[1:]), np.float32)
        shard = np.searchsorted(self.ends, flat, side="right")
        row = flat - np.concatenate([[0], self.ends])[shard]
        for begin, end in runs(self._chunks_before[shard] + row // CHUNK):
            self._read(int(shard[begin]), row[begin:end], result[begin:end])
        return result.reshape(*index.shape, *self.shape[1:])

    def _read(self, number: int, rows: np.ndarray, out: np.ndarray) -> None:
        """Rows of one chunk of a shard."""
        shard = self.shards[number]
        file = self._files.get(number, lambda: self.folder.open(shard["file"]))
        first = int(rows[0]) // CHUNK * CHUNK
        count, chunk = min(CHUNK, shard["frames"] - first), int(self._chunks_before[number]) + first // CHUNK
        if self._checked[chunk] and bool((np.diff(rows) == 1).all()):
            file.read_into(shard["latents"] + int(rows[0]) * self._width, out.data.cast("B"))
            return
        start = shard["latents"] + first * self._width
        data = file.read(start, count * self._width)
        if not self._checked[chunk]:
            if zlib.crc32(data) != int(self._sums.get(number, lambda: self._sums_of(number, file))[first]):
                raise DataError(f"'{file.name}' is damaged near byte {start}: latents don't have their checksum")
            self._checked[chunk] = True
        out[:] = np.frombuffer(data, np.float32).reshape(count, *self.shape[1:])[rows - first]

    def _sums_of(self, number: int, file: RangeFile) -> np.ndarray:
        shard = self.shards[number]
        data = file.read(shard["chunk_crc32"], shard["frames"] * 4)
        if zlib.crc32(data) != shard["sums_crc32"]:
            raise DataError(f"'{file.name}' is damaged near byte {shard['chunk_crc32']}: encode it again")
        return np.frombuffer(data, np.uint32)


class LatentDataset:
    """Latents on the frame axis of a dataset."""

    def __init__(self, rows: Rows, model: str):
        self.rows, self.model = rows, model

    @classmethod
    def open(cls, folder: Path | str, dataset: EpisodeDataset, model: str | None = None) -> Self:
        """Opens the latents of a dataset.

        Args:
            folder: a path, or a URL that pyarrow or fsspec knows.
            model: fingerprint that they have to have.

        Raises:
            DataError: they are missing, damaged, or of another dataset or tokenizer.
        """
        place = folder_at(folder)
        manifest = read_manifest(place, FORMAT, FORMAT_VERSION)
        if missing := {"dataset", "frames", "model", "shards"} - manifest.keys():
            raise DataError(
                f"the manifest in '{place.name}' lacks {', '.join(sorted(missing))}: encode the dataset again"
            )
        if manifest["dataset"] != dataset.manifest.fingerprint or manifest["frames"] != dataset.frame_count:
            raise DataError(
                f"the latents in '{place.name}' are not of the dataset in '{dataset.folder}': encode it again"
            )
        if model is not None and manifest["model"] != model:
            raise DataError(
                f"the latents in '{place.name}' have fingerprint {manifest['model']}, not {model}: encode it again"
            )
        return cls(LatentFiles(place, manifest["shards"]), manifest["model"])

    @property
    def frame_count(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        """`S, D`."""
        return self.rows.shape[1], self.rows.shape[2]

    def latents(self, start: int, stop: int) -> np.ndarray:
        """`[T, S, D]` of frames `start` to `stop - 1`."""
        return self.rows.between(start, stop)

    def take(self, frame_BT: np.ndarray) -> np.ndarray:
        """`[B, T, S, D]` of frames at any positions, a copy."""
        return self.rows.take(frame_BT)


def _schema(width: int) -> pa.Schema:
    return pa.schema(
        [pa.field("chunk_crc32", pa.uint32(), nullable=False), pa.field("latents", pa.binary(width), nullable=False)]
    )
