"""Films as a stream of frames: one decoded frame in memory at a time, none left out, none shown twice."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamer4.data.importers.canvas import LARGEST
from dreamer4.errors import DataError

if TYPE_CHECKING:
    import av

FILMS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v")
PIXELS = 1 << 26  # of a frame; a damaged header may promise any size


def frames_of(path: Path) -> Iterator[np.ndarray]:
    """All frames in the order in which they are shown, each uint8 `[H, W, 3]`.

    Raises:
        DataError: naming the file, and the frame where decoding stopped: it is missing, is no film, is damaged, was cut
            or has no frame; or PyAV isn't installed.
    """
    with _opened(path) as (container, stream):
        promised, count = stream.frames, 0
        for frame, complaint in _decoded(container, stream):
            yield _pixels(frame, path, count, complaint)
            count += 1
        if count == 0:
            raise DataError(f"'{path}' has no frame: download or record it again")
        if count < promised:
            raise DataError(f"'{path}' was cut: it promises {promised} frames and has {count}; download it again")


def frames_between(path: Path, start: float, count: int) -> Iterator[np.ndarray]:
    """`count` frames from `start` seconds on; decodes from the last key frame before.

    Raises:
        DataError: as `frames_of`, or the film ends before.
    """
    with _opened(path) as (container, stream):
        base, rate = stream.time_base or Fraction(1, 1_000_000), stream.average_rate or Fraction(1)
        origin = stream.start_time or 0
        early = Fraction(1, 2) / rate  # half a frame: times were rounded when they were written
        if start > 0:
            container.seek(origin + int(start / base), stream=stream, backward=True)
        given = 0
        for frame, complaint in _decoded(container, stream):
            if frame.pts is None:
                raise DataError(f"'{path}' has frames without a time: episodes can't be found in it; encode it again")
            if (frame.pts - origin) * base < start - early:
                continue  # a decoder may miss what was before the place that it began at
            yield _pixels(frame, path, given, complaint)
            given += 1
            if given == count:
                return
    raise DataError(f"'{path}' ends {count - given} frames early: {count} are promised from second {start:g} on")


def frame_rate(path: Path) -> Fraction:
    """Frames per second that the film states; raises `DataError` as `frames_of`."""
    with _opened(path) as (_, stream):
        if not stream.average_rate:
            raise DataError(f"'{path}' states no frame rate: encode it again, or import it without --fps")
        return stream.average_rate


def at_rate(frames: Iterable[np.ndarray], before: Fraction, after: Fraction) -> Iterator[np.ndarray]:
    """The stream as a camera of another rate would have shown it: at time k / after, the latest frame until then.

    A lower rate leaves frames out, a higher one repeats some; nothing is blended.
    """
    shown = 0  # frames given out
    for number, frame in enumerate(frames):
        # Frame `number` is on screen from number / before until (number + 1) / before.
        while Fraction(shown) / after < Fraction(number + 1) / before:
            yield frame
            shown += 1


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, "av.VideoStream"]]:
    av = _av()
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise DataError(f"'{path}' has no pictures: it is no film")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise DataError(f"'{path}' is damaged, or its pictures are coded in a way that PyAV can't read")
            width, height = stream.codec_context.width, stream.codec_context.height
            if not (0 < width <= LARGEST and 0 < height <= LARGEST and width * height <= PIXELS):
                raise DataError(f"'{path}' has frames of {height}x{width} pixels, from 1 to {LARGEST} are possible")
            # Damaged pictures are an error, and not something that the decoder paints over. One thread: there are as
            # many importers as cores.
            stream.codec_context.options = {"err_detect": "crccheck+bitstream+buffer+explode"}
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.FFmpegError as error:
        raise DataError(f"'{path}' is damaged or no film, {error.strerror or error}: download it again") from error
    except (ValueError, ArithmeticError, MemoryError) as error:  # impossible numbers in a damaged header
        raise DataError(f"'{path}' is damaged or no film, {error}: download it again") from error


def _decoded(container: Any, stream: "av.VideoStream") -> Iterator[tuple["av.VideoFrame", str]]:
    """Frames, and what was found wrong while each was decoded; "" where nothing was.

    libav tells of some damages in its log only, and goes on. It is listened to while it decodes and not between frames,
    when others may use it in this thread.
    """
    av = _av()
    frames = _frames(container, stream)
    while True:
        level = av.logging.get_level()
        av.logging.set_level(av.logging.ERROR)
        try:
            with av.logging.Capture() as said:
                frame, complaint = next(frames, (None, ""))
        finally:
            av.logging.set_level(level)
        if frame is None:
            return
        yield frame, complaint or "; ".join(text.strip() for grade, _, text in said if grade <= av.logging.ERROR)


def _frames(container: Any, stream: "av.VideoStream") -> Iterator[tuple["av.VideoFrame", str]]:
    for packet in container.demux(stream):
        for frame in packet.decode():
            corrupt = frame.is_corrupt or packet.is_corrupt
            yield frame, "it is marked as corrupt" if corrupt else ""


def _pixels(frame: "av.VideoFrame", path: Path, number: int, complaint: str) -> np.ndarray:
    if complaint:
        raise DataError(f"'{path}' is damaged near frame {number}, {complaint[:200]}: download it again")
    return frame.to_ndarray(format="rgb24")


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise DataError("reading films needs PyAV: pip install 'dreamer4-ray[video]'") from None
    return av
