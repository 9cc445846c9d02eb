"""What `dreamer4 bench data` reads: synthetic video, and how others keep and read it."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

LENGTH = 64  # frames of a clip
CRF = 20
Draw = Callable[[], torch.Tensor]


def pixel_art(frames: int, size: int = 64, seed: int = 0) -> np.ndarray:
    """`[T, size, size, 3]`: a walk over a map of 8x8 tiles with a noisy texture each, and things that move on it."""
    random = np.random.default_rng(seed)
    tiles = random.integers(40, 216, (12, 1, 1, 3)) + random.integers(-24, 24, (12, 8, 8, 1))
    kinds = np.repeat(np.repeat(random.integers(12, size=(16, 16)), 2, axis=0), 2, axis=1)
    ground = tiles[kinds].transpose(0, 2, 1, 3, 4).reshape(256, 256, 3).astype(np.uint8)
    things, video = tiles[random.integers(12, size=5)], np.empty((frames, size, size, 3), np.uint8)
    y, x, places = 64, 64, random.integers(0, size - 8, (5, 2))
    for frame in video:
        y, x = (np.array([y, x]) + 8 * random.integers(-1, 2, 2)).clip(0, 256 - size)
        frame[:] = ground[y : y + size, x : x + size]
        places = (places + random.integers(-2, 3, places.shape)).clip(0, size - 8)
        for thing, (row, column) in zip(things, places, strict=True):
            frame[row : row + 8, column : column + 8] = thing
    return video


def panning(frames: int, height: int = 360, width: int = 640, seed: int = 0) -> np.ndarray:
    """`[T, height, width, 3]`: a smooth texture with edges, seen by a camera that turns unevenly."""
    random = np.random.default_rng(seed)
    ground = np.zeros((1024, 2048, 3))
    for scale, strength in ((256, 70), (64, 40), (16, 20), (4, 8)):
        coarse = torch.from_numpy(random.normal(0, strength, (1, 3, 1024 // scale, 2048 // scale)))
        ground += torch.nn.functional.interpolate(coarse, (1024, 2048), mode="bilinear")[0].permute(1, 2, 0).numpy()
    ground = (128 + ground).clip(0, 255).astype(np.uint8)
    ground[512:, :, :] = ground[512:, :, :] // 2  # a horizon
    video, place, speed = np.empty((frames, height, width, 3), np.uint8), np.array([300.0, 700.0]), np.zeros(2)
    for frame in video:
        speed = 0.95 * speed + random.normal(0, 0.7, 2)
        place = (place + speed).clip(0, [1023 - height, 2047 - width])
        y, x = place.astype(int)
        frame[:] = ground[y : y + height, x : x + width]
    return video


def mp4_bytes(video: np.ndarray) -> bytes:
    """As one would write it: x264, a key frame every 64 frames, crf as ours."""
    import av

    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
        stream.options = {"crf": str(CRF), "g": str(LENGTH), "keyint_min": str(LENGTH), "sc_threshold": "0"}
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return target.getvalue()


def plain_mp4(path: Path, video: np.ndarray) -> Draw:
    """Seeks in one film that stays open."""
    import av

    path.write_bytes(mp4_bytes(video))
    container, random = av.open(str(path)), np.random.default_rng(1)
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    time_base = stream.time_base
    assert time_base is not None
    ticks = float(1 / (20 * time_base))  # of a frame

    def draw() -> torch.Tensor:
        first = int(random.integers(len(video) - LENGTH))
        container.seek(int(first * ticks), stream=stream)
        out = np.empty((LENGTH, *video.shape[1:]), np.uint8)
        for frame in container.decode(stream):
            assert frame.pts is not None
            place = round(frame.pts / ticks) - first
            if 0 <= place < LENGTH:
                out[place] = frame.to_ndarray(format="rgb24")
            if place >= LENGTH - 1:
                return torch.from_numpy(out)[None]
        raise AssertionError("the film ended too early")

    return draw


def tar_stream(path: Path, video: np.ndarray, kind: str) -> Draw:
    """Reads samples one after the other from a tar file, as WebDataset does; one sample is one clip."""
    with tarfile.open(path, "w") as tar:
        for start in range(0, len(video) - LENGTH + 1, LENGTH):
            clip, buffer = video[start : start + LENGTH], io.BytesIO()
            if kind == "mp4":
                buffer.write(mp4_bytes(clip))
            else:
                np.save(buffer, clip)
            info = tarfile.TarInfo(f"{start:09d}.{kind}")
            info.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(info, buffer)

    def samples() -> Iterator[torch.Tensor]:
        while True:
            with tarfile.open(path, "r|") as tar:
                for member in tar:
                    file = tar.extractfile(member)
                    assert file is not None
                    yield torch.from_numpy(_decode(file.read(), kind))[None]

    stream = samples()
    return lambda: next(stream)


def _decode(data: bytes, kind: str) -> np.ndarray:
    if kind == "npy":
        return np.load(io.BytesIO(data))
    import av

    with av.open(io.BytesIO(data), "r") as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def lerobot_film(path: Path, video: np.ndarray) -> Draw | None:
    """LeRobot's reader of frames at given times, from a film that is there; None where the package isn't installed."""
    try:
        from lerobot.datasets.video_utils import decode_video_frames  # type: ignore[import-not-found]
    except ImportError:
        return None
    random = np.random.default_rng(2)

    def draw() -> torch.Tensor:
        first = int(random.integers(len(video) - LENGTH))
        frames = decode_video_frames(path, [(first + t) / 20 for t in range(LENGTH)], 0.01, "pyav")
        return (frames * 255).to(torch.uint8)[None]

    return draw
