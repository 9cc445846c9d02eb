import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from worlds import FRAME, SPACE, walk

from dreamer4.actions import ActionSpace
from dreamer4.data.clips import ClipSampler
from dreamer4.data.codecs import Codec
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.writer import DatasetWriter
from dreamer4.errors import DataError
from dreamer4.types import Episode

LOSSLESS = [Codec(), Codec(chunk=5), Codec("zstd"), Codec("zstd", chunk=7), Codec("zstd", chunk=1, level=19)]
LARGE = (48, 64, 3)


def write_walks(folder: Path, codec: Codec, count: int = 12) -> EpisodeDataset:
    with DatasetWriter(folder, "walk", FRAME, SPACE, ["even", "odd"], shard_frames=60, codec=codec) as writer:
        for index in range(count):
            writer.add(walk(index))
    return EpisodeDataset.open(folder, verify=True)


def turning(frames: int) -> np.ndarray:
    """A smooth picture that moves: what video is made for."""
    t, y, x = np.mgrid[:frames, : LARGE[0], : LARGE[1]]
    waves = [128 + 90 * np.sin(0.1 * (x + k * y) + 0.2 * t) for k in (0, 0.5, 1)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def filmed(folder: Path, frames: int, crf: int = 20) -> EpisodeDataset:
    known, zeros = np.arange(frames) < frames - 1, np.zeros((frames, 1), np.float32)
    codec = Codec("h264", chunk=16, crf=crf)
    with DatasetWriter(folder, "film", LARGE, ActionSpace.discrete(2), ["only"], codec=codec) as writer:
        writer.add(Episode(turning(frames), zeros, known, zeros[:, 0], terminal=False))
    return EpisodeDataset.open(folder, verify=True)


@pytest.mark.parametrize("codec", LOSSLESS, ids=str)
def test_lossless_frames_come_back_bit_for_bit(tmp_path, codec):
    data = write_walks(tmp_path, codec)
    whole = np.concatenate([walk(index).frames_THWC for index in range(12)])
    assert np.array_equal(np.asarray(data.frames), whole)
    for shape in ((40,), (5, 9)):
        index = np.random.default_rng(0).integers(len(whole), size=shape)
        assert np.array_equal(data.frames.take(index), whole[index])
    assert data.manifest.recording.codec == codec and "psnr_db" not in data.manifest.statistics


def test_clips_do_not_depend_on_the_codec_or_on_threads(tmp_path):
    """Nor does a second reading, for which raw frames take another way."""
    clips = []
    for number, codec in enumerate(LOSSLESS):
        write_walks(tmp_path / str(number), codec)
        for threads in (0, 3):
            sampler = ClipSampler(EpisodeDataset.open(tmp_path / str(number), threads=threads), seed=3)
            clips += [sampler.batch(0, 8, 9), sampler.batch(0, 8, 9)]
    for clip in clips[1:]:
        assert clip.video_BTHWC is not None and clips[0].video_BTHWC is not None
        assert clip.video_BTHWC.equal(clips[0].video_BTHWC) and clip.act_in_BTA.equal(clips[0].act_in_BTA)


def test_video_has_the_quality_that_its_manifest_states(tmp_path):
    data, frames = filmed(tmp_path, 50), turning(50)
    assert len(data.frames) == 50
    error = np.square(np.asarray(data.frames) / 255 - frames / 255)
    measured = -10 * np.log10(error[:16].mean())  # the chunk that the writer has looked at
    assert data.manifest.statistics["psnr_db"] == pytest.approx(measured, abs=0.01)
    assert measured > 30 and -10 * np.log10(error.mean()) > 30
    coarse = filmed(tmp_path / "coarse", 50, crf=45)
    assert coarse.manifest.statistics["psnr_db"] < measured - 5
    assert coarse.manifest.shards[0].bytes < data.manifest.shards[0].bytes


def test_any_frames_of_a_video_are_those_of_the_whole(tmp_path):
    data = filmed(tmp_path, 50)
    whole = np.asarray(data.frames)
    for index in (np.arange(10, 40), np.array([49, 0, 17, 17, 3]), np.array([[15, 16], [31, 32]])):
        assert np.array_equal(data.frames.take(index), whole[index])


def test_the_same_frames_give_the_same_video_and_each_chunk_is_a_film(tmp_path):
    import av

    files = [Path(filmed(tmp_path / name, 50).folder) / "shard-00000.arrow" for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    chunks = [blob for blob in pa.ipc.open_file(str(files[0])).read_all()["chunk"].to_pylist() if blob is not None]
    lengths = [sum(1 for _ in av.open(io.BytesIO(blob), "r").decode(video=0)) for blob in chunks]
    assert lengths == [16, 16, 16, 2]


@pytest.mark.parametrize("kind", ["zstd", "h264"])
def test_a_chunk_that_holds_something_else_is_refused(kind):
    codec, frames = Codec(kind), turning(8)
    blob = codec.encode(frames)
    out = np.empty_like(frames)
    codec.decode(memoryview(blob), 8, 0, out)
    for bad in (blob[: len(blob) // 2], b"", b"#EXTM3U\nfile:///etc/passwd", bytes(len(blob))):
        with pytest.raises(DataError, match="chunk"):
            codec.decode(memoryview(bad), 8, 0, out)
    with pytest.raises(DataError, match="chunk"):
        codec.decode(memoryview(blob), 9, 8, out[:1])
    other = codec.encode(np.repeat(frames, 2, axis=1))
    with pytest.raises(DataError, match="chunk"):
        codec.decode(memoryview(other), 8, 0, out)


def test_frame_size_chooses_the_codec():
    assert Codec.choose("auto", (64, 64, 3)).kind == "zstd" and Codec.choose("auto", (360, 640, 3)).kind == "h264"
    assert Codec.choose("raw", (360, 640, 3)) == Codec()
    for shape in ((40, 41, 3), (48, 64, 1), (8, 8, 3)):
        with pytest.raises(DataError, match="keep them as zstd"):
            Codec.choose("h264", shape)
    for bad in ({"chunk": 0}, {"level": 23}, {"crf": -1}, {"kind": "jpeg"}, {"chunk": 2.5}):
        with pytest.raises(DataError):
            Codec(**bad)


def test_a_dataset_is_of_one_codec(tmp_path):
    write_walks(tmp_path, Codec("zstd"), 2)
    with pytest.raises(DataError, match="its codec is"):
        write_walks(tmp_path, Codec(), 2)
    data = write_walks(tmp_path, Codec("zstd"), 3)
    assert data.episode_count == 5 and np.array_equal(data.episode(4).frames_THWC, walk(2).frames_THWC)


def test_statistics_are_those_of_actions_and_pixels(tmp_path):
    half = [replace(walk(i), act_known_T=walk(i).act_known_T & (i % 2 == 0)) for i in range(6)]
    with DatasetWriter(tmp_path, "walk", FRAME, SPACE, ["even", "odd"], codec=Codec(chunk=1)) as writer:
        for episode in half:
            writer.add(episode)
    found = EpisodeDataset.open(tmp_path).manifest.statistics
    known = np.concatenate([one.act_out_TA[one.act_known_T] for one in half])
    pixels = np.concatenate([one.frames_THWC for one in half]).reshape(-1, 3) / 255
    assert found["known_share"] == pytest.approx(len(known) / sum(one.length for one in half))
    assert found["action_mean"] == pytest.approx(known.mean(0)) and found["action_std"] == pytest.approx(known.std(0))
    assert found["pixel_mean"] == pytest.approx(pixels.mean(0)) and found["pixel_std"] == pytest.approx(pixels.std(0))
