"""How frames are kept: as they are, packed without loss, or as video. The unit is a chunk of neighbouring frames.

Small frames such as pixel art are packed (video would blur them and be slower), large ones are video with one key frame
per chunk: without it a dataset of Minecraft would be a hundred times as large.
"""

import io
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from dreamer4.errors import DataError

Kind = Literal["raw", "zstd", "h264"]
PACKED_PIXELS = 128 * 128  # frames up to this size are packed, larger ones are video
FRAME_RATE = 20  # of the video blobs, for players; reading doesn't depend on it


@dataclass(frozen=True)
class Codec:
    """A way to keep frames.

    Args:
        kind: `raw` is read fastest and is largest, `zstd` is exact and about a fifth of it, `h264` is lossy.
        chunk: frames that are kept, checked and read together.
        level: of zstd, 1 (quick) to 22 (small).
        crf: of h264, 0 (best) to 51; its loss is measured and stated in the manifest.

    Raises:
        DataError: a number is out of range.
    """

    kind: Kind = "raw"
    chunk: int = 64
    level: int = 3
    crf: int = 20

    def __post_init__(self) -> None:
        ranges = {"chunk": (1, 4096), "level": (1, 22), "crf": (0, 51)}
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value <= most:
                raise DataError(f"a codec's {name} is a whole number from {least} to {most}, got {value!r}")
        if self.kind not in ("raw", "zstd", "h264"):
            raise DataError(f"frames are kept as raw, zstd or h264, not as {self.kind!r}")

    @classmethod
    def choose(cls, name: str, frame: tuple[int, int, int]) -> "Codec":
        """The codec of a name, or for `auto` the one that suits the frame size.

        Raises:
            DataError: there is none of this name, or it can't hold such frames.
        """
        if name == "auto":
            name = "zstd" if frame[0] * frame[1] <= PACKED_PIXELS else "h264"
        codec = cls(kind=name)  # type: ignore[arg-type]
        codec.check(frame)
        return codec

    @property
    def lossless(self) -> bool:
        return self.kind != "h264"

    def check(self, frame: tuple[int, int, int]) -> None:
        """Raises `DataError` if it can't hold frames of this size, or what it needs isn't installed."""
        if self.kind != "h264":
            return
        if frame[2] != 3 or frame[0] % 2 or frame[1] % 2 or min(frame[:2]) < 16:
            raise DataError(
                f"h264 takes frames of 3 channels, even height and width from 16 on, not {tuple(frame)}: "
                "keep them as zstd"
            )
        _av()

    def to_json(self) -> dict[str, Any]:
        used = {"raw": ("kind", "chunk"), "zstd": ("kind", "chunk", "level"), "h264": ("kind", "chunk", "crf")}
        return {name: value for name, value in asdict(self).items() if name in used[self.kind]}

    def encode(self, frames_THWC: np.ndarray) -> bytes:
        """A chunk of uint8 frames as bytes: the same frames give the same bytes."""
        frames_THWC = np.ascontiguousarray(frames_THWC)
        if self.kind == "raw":
            return frames_THWC.tobytes()
        if self.kind == "zstd":
            packed = pa.Codec("zstd", compression_level=self.level).compress(frames_THWC.reshape(-1))
            return packed.to_pybytes()
        return _encode_video(frames_THWC, self.crf)

    def decode(self, blob: memoryview, frames: int, first: int, out_THWC: np.ndarray) -> None:
        """Writes frames `first` to `first + len(out) - 1` of a chunk of `frames` frames into `out_THWC`.

        Raises:
            DataError: the blob isn't such a chunk.
        """
        shape, count = out_THWC.shape[1:], len(out_THWC)
        if self.kind == "h264":
            _decode_video(blob, first, out_THWC)
            return
        size = frames * int(np.prod(shape))
        data: Any = blob
        if self.kind == "zstd":
            try:
                data = pa.Codec("zstd").decompress(blob, size)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise DataError(f"a chunk can't be unpacked: {error}") from error
        if len(data) != size:
            raise DataError(f"a chunk has {len(data)} bytes, its {frames} frames need {size}")
        out_THWC[:] = np.frombuffer(data, np.uint8).reshape(frames, *shape)[first : first + count]


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise DataError("frames kept as video need PyAV: pip install 'dreamer4-ray[video]'") from error
    return av


def _encode_video(frames_THWC: np.ndarray, crf: int) -> bytes:
    """One closed group of pictures. `fastdecode` and no B-frames: it is written once and read for years.

    Measured on a camera that turns over a texture, 360x640: `veryfast` takes a third of the time of x264's default and
    a fifth less space, at 39.4 dB instead of 40.6.
    """
    av = _av()
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE)
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt, stream.thread_count = "yuv420p", 1  # one thread: the bytes don't depend on the machine
        options = {"preset": "veryfast", "tune": "fastdecode", "bf": "0", "crf": str(crf), "g": str(len(frames_THWC))}
        stream.options = options
        for frame in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return target.getvalue()


def _decode_video(blob: memoryview, first: int, out_THWC: np.ndarray) -> None:
    av, (count, height, width) = _av(), out_THWC.shape[:3]
    done = 0
    try:
        # The format is named, so that a hostile blob can't pass for a playlist of other files.
        with av.open(io.BytesIO(blob), format="mp4") as container:
            stream = container.streams.video[0]
            context = stream.codec_context
            if (context.name, context.height, context.width) != ("h264", height, width):
                raise DataError(
                    f"a chunk holds {context.name} of {context.height}x{context.width}, not {height}x{width}"
                )
            context.thread_count = 1  # chunks are decoded side by side
            convert = av.video.reformatter.VideoReformatter().reformat  # one for all frames: its tables are kept
            for number, frame in enumerate(container.decode(stream)):
                if number >= first:
                    out_THWC[done] = convert(frame, format="rgb24", threads=1).to_ndarray()
                    done += 1
                if done == count:
                    return
    except (av.FFmpegError, IndexError, ValueError, EOFError) as error:
        raise DataError(f"a chunk can't be decoded: {error}") from error
    raise DataError(f"a chunk of video ends at frame {first + done}, {first + count} are needed")
