"""The report's pictures as PNG bytes: curves by matplotlib, frames by pillow."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
from matplotlib.figure import Figure  # noqa: E402  after the choice of the backend


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float | None]]], x: str, y: str, log: bool = False
) -> bytes:
    """Named lines of (x, y); what is None is left out."""
    figure = Figure(figsize=(5.2, 3.0), dpi=130, layout="constrained")
    axes = figure.subplots()
    for name, (xs, ys) in lines.items():
        points = [(a, b) for a, b in zip(xs, ys, strict=True) if b is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1.4)
    if log:
        axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend(fontsize=8, frameon=False)
    return _png_of(figure)


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Running mean of the last `window` values."""
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()


def losses(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bytes:
    """The named metrics of one stage's rows over its updates, smoothed over a hundredth of the stage."""
    steps = [row["step"] for row in rows]
    window = max(1, len(rows) // 100)
    lines = {name: (steps, smoothed([row[name] or 0.0 for row in rows], window)) for name in names}
    positive = all(value > 0 for _, values in lines.values() for value in values)
    return curves(lines, "update", "loss", log=positive)


def grid(rows: Sequence[np.ndarray], scale: int = 3, gap: int = 2) -> bytes:
    """Rows of frames `[n, H, W, 3]` uint8, one below the other."""
    height, width = rows[0].shape[1:3]
    columns = max(len(row) for row in rows)
    canvas = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, frame in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = frame
    image = Image.fromarray(canvas)
    buffer = io.BytesIO()
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def _png_of(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
