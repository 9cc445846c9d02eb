"""The report's pictures of frames: real above made-up ones, small ones enlarged without smoothing."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cluster.reports.figures import DARK, LIGHT, Picture, Theme

TALL = 80  # pixels that small frames are enlarged to, about
GAP = 4  # pixels between frames
BAND = 14  # pixels between pairs of rows, and for a line of text


def reconstructions(found: Mapping[str, Any]) -> Picture:
    """Frames above their reconstructions."""
    caption = "Frames of validation episodes (above) and their reconstructions from latents (below)."
    rows = [list(found["real"]), list(found["reconstructed"])]
    return _picture("reconstructions", caption, [rows], [""] * len(found["real"]))


def continuations(found: Mapping[str, Any]) -> Picture:
    """For every window: what really followed, above what was imagined, from the context's last frame (step 0) on."""
    caption = (
        "What really followed (above) and what the model imagined (below) after the same frames and the same "
        "actions. Step 0 is the last frame that the model saw. Real frames end where the episode ended."
    )
    blocks = []
    windows = zip(found["last"], found["real"], found["imagined"], found["known"], strict=True)
    for last, real, imagined, known in windows:
        above = [last, *(frame if there else None for frame, there in zip(real, known, strict=True))]
        below = [last, *(frame if there else None for frame, there in zip(imagined, known, strict=True))]
        blocks.append([above, below])
    return _picture("strips", caption, blocks, [str(step) for step in range(len(found["known"][0]) + 1)])


def _picture(name: str, caption: str, blocks: list[list[list[np.ndarray | None]]], labels: list[str]) -> Picture:
    light, dark = (_canvas(blocks, labels, theme) for theme in (LIGHT, DARK))
    return Picture(name, caption, light, dark, wide=True)


def _size(frame: np.ndarray) -> tuple[int, int]:
    """Height and width to show a frame at: a whole multiple of small ones, large ones shrunk to twice `TALL`."""
    height, width = frame.shape[:2]
    factor = max(1, round(TALL / height)) if height <= 2 * TALL else 2 * TALL / height
    return round(height * factor), round(width * factor)


def _canvas(blocks: list[list[list[np.ndarray | None]]], labels: list[str], theme: Theme) -> bytes:
    """PNG of blocks of rows of frames; absent frames are left empty."""
    height, width = _size(next(frame for frame in blocks[0][0] if frame is not None))
    column, row = width + GAP, height + GAP
    per_block = len(blocks[0])
    size = (len(labels) * column + GAP, BAND + len(blocks) * (per_block * row + BAND))
    canvas = Image.new("RGB", size, theme.paper)
    pencil, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for i, text in enumerate(labels):
        pencil.text((GAP + i * column + width / 2, BAND / 2), text, fill=theme.ink, font=font, anchor="mm")
    for b, block in enumerate(blocks):
        for r, frames in enumerate(block):
            for i, frame in enumerate(frames):
                if frame is not None:
                    sharp = Image.Resampling.NEAREST if height >= frame.shape[0] else Image.Resampling.BOX
                    image = Image.fromarray(frame).resize((width, height), sharp)
                    canvas.paste(image, (GAP + i * column, BAND + b * (per_block * row + BAND) + r * row))
    file = io.BytesIO()
    canvas.save(file, "PNG", optimize=True)
    return file.getvalue()
