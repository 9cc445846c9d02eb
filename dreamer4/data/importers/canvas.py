"""Frames of any size to the size of a dataset, by a choice that the user makes and the manifest's frame size shows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from dreamer4.errors import DataError

Fit = Literal["letterbox", "stretch", "crop", "exact"]
LARGEST = 8192  # pixels per side


@dataclass(frozen=True)
class Canvas:
    """The frame of a dataset and how others are made to fit.

    Attributes:
        height, width: in pixels.
        fit: "letterbox" keeps the picture whole and adds black bars, "stretch" changes its proportions, "crop" keeps
            them and cuts off what is over at both sides, "exact" refuses frames of another size.

    Raises:
        DataError: the size is impossible.
    """

    height: int
    width: int
    fit: Fit = "letterbox"

    def __post_init__(self) -> None:
        if not (1 <= self.height <= LARGEST and 1 <= self.width <= LARGEST):
            raise DataError(f"frames of {self.height}x{self.width} are impossible: use 1 to {LARGEST} pixels per side")

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, 3

    def place(self, frame_HWC: np.ndarray, path: Path) -> np.ndarray:
        """The frame, uint8 `[height, width, 3]`; unchanged, and not copied, where its size fits already.

        Raises:
            DataError: it doesn't fit and has to; `path` is where it comes from.
        """
        height, width = frame_HWC.shape[:2]
        if (height, width) == (self.height, self.width):
            return frame_HWC
        if self.fit == "exact":
            raise DataError(
                f"'{path}' has frames of {height}x{width}, those before have {self.height}x{self.width}: say "
                f"--frame {self.height}x{self.width}, and --fit how they are to be brought to it"
            )
        image = Image.fromarray(frame_HWC)
        if self.fit == "stretch":
            return np.asarray(image.resize((self.width, self.height), Image.Resampling.BILINEAR))
        if self.fit == "crop":
            box = _centred(width, height, self.width, self.height)
            return np.asarray(image.resize((self.width, self.height), Image.Resampling.BILINEAR, box=box))
        scale = min(self.height / height, self.width / width)
        inner = max(1, round(height * scale)), max(1, round(width * scale))
        if inner != (height, width):
            image = image.resize((inner[1], inner[0]), Image.Resampling.BILINEAR)
        whole = np.zeros(self.shape, np.uint8)
        top, left = (self.height - inner[0]) // 2, (self.width - inner[1]) // 2
        whole[top : top + inner[0], left : left + inner[1]] = np.asarray(image)
        return whole


def _centred(width: int, height: int, to_width: int, to_height: int) -> tuple[float, float, float, float]:
    """The largest box of the wanted proportions in the middle of a picture: left, top, right, bottom."""
    scale = min(width / to_width, height / to_height)
    across, down = to_width * scale, to_height * scale
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down


def as_rgb(frames: np.ndarray, what: str) -> np.ndarray:
    """Images as uint8 `[T, H, W, 3]`; grey ones `[T, H, W]` or `[T, H, W, 1]` get three equal channels.

    Raises:
        DataError: they are no images, or of another number type or size; `what` names them.
    """
    if frames.ndim == 3:
        frames = frames[..., None]
    fits = frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[-1] in (1, 3)
    if not fits or not all(1 <= side <= LARGEST for side in frames.shape[1:3]):
        raise DataError(
            f"{what} are {frames.dtype} of shape {list(frames.shape[1:])}, not images: uint8 of height x width x 3 is "
            "wanted; render the environment and record that"
        )
    return np.repeat(frames, 3, axis=-1) if frames.shape[-1] == 1 else frames
