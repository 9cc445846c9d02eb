"""The report's pictures: functions from numbers to PNGs, each for a light and for a dark page.

Narrow, because they are read on phones too. No global state of matplotlib is used.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

WIDTH = 4.8  # inches
LOSSES = {  # what is drawn of a stage's metrics
    "tokenizer": ("mse", "lpips"),
    "dynamics": ("shortcut",),
    "agent": ("shortcut", "policy", "reward", "continue"),
    "filtered_bc": ("policy",),
    "policy": ("policy", "value", "kl", "entropy"),
}
POINTS = 300  # of a curve; more are averaged


@dataclass(frozen=True)
class Theme:
    """Colours of a page. `series`: told apart without red against green."""

    ink: str
    paper: str
    faint: str
    series: tuple[str, ...]


LIGHT = Theme("#1c1f24", "#ffffff", "#d9dde3", ("#0072b2", "#c4500b", "#00855f", "#8c5aa8"))
DARK = Theme("#e6e8eb", "#15181c", "#3a4048", ("#56b4e9", "#f0935a", "#3cc4a0", "#cc9bd9"))


@dataclass(frozen=True)
class Picture:
    """A figure of the report; the two PNGs show the same on light and on dark paper."""

    name: str
    caption: str
    light: bytes
    dark: bytes
    wide: bool = False  # scrolls sideways on narrow screens instead of shrinking


def draw(name: str, caption: str, rows: int, row_height: float, paint: Callable[[list[Axes], Theme], None]) -> Picture:
    """A picture of `rows` plots below each other, painted once per theme."""
    pngs = []
    for theme in (LIGHT, DARK):
        figure = Figure(figsize=(WIDTH, rows * row_height), layout="constrained", facecolor=theme.paper)
        axes = [figure.add_subplot(rows, 1, i + 1) for i in range(rows)]
        for axis in axes:
            _style(axis, theme)
        paint(axes, theme)
        pngs.append(_png(figure, dpi=160))
    return Picture(name, caption, *pngs)


def _style(axis: Axes, theme: Theme) -> None:
    axis.set_facecolor(theme.paper)
    axis.tick_params(colors=theme.ink, labelsize=9)
    axis.grid(color=theme.faint, linewidth=0.6)
    axis.set_axisbelow(True)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.faint)
    for text in (axis.xaxis.label, axis.yaxis.label, axis.title):
        text.set_color(theme.ink)
        text.set_fontsize(9.5)


def _png(figure: Figure, dpi: int) -> bytes:
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(file, dpi=dpi, facecolor=figure.get_facecolor(), metadata={"Software": None})
    return file.getvalue()


def _legend(axis: Axes, theme: Theme) -> None:
    axis.legend(fontsize=8.5, frameon=False, labelcolor=theme.ink)


def _count_along(axis: Axes) -> None:
    """Whole numbers only: half an update is none."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def thinned(steps: np.ndarray, values: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Means over neighbouring updates, about `points` of them; values that aren't numbers are left out."""
    known = np.isfinite(values)
    steps, values = steps[known], values[known]
    parts = np.array_split(np.arange(len(steps)), min(points, max(1, len(steps))))
    parts = [part for part in parts if len(part)]
    return np.array([steps[p].mean() for p in parts]), np.array([values[p].mean() for p in parts])


def series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one metric; null is not a number."""
    found = [(row["step"], row[name]) for row in rows if name in row]
    steps = np.array([step for step, _ in found], np.float64)
    return steps, np.array([np.nan if value is None else value for _, value in found], np.float64)


def losses(stage: str, rows: Sequence[Mapping[str, Any]]) -> Picture | None:
    """The loss terms of a stage over its updates; None where none was logged."""
    names = [name for name in LOSSES.get(stage, ()) if any(name in row for row in rows)]
    if not names:
        return None

    def paint(axes: list[Axes], theme: Theme) -> None:
        for axis, name in zip(axes, names, strict=True):
            steps, values = thinned(*series(rows, name))
            axis.plot(steps, values, color=theme.series[0], linewidth=1.2)
            if len(values) and values.min() > 0 and values.max() > 10 * values.min():
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_major_formatter("{x:g}")
                axis.yaxis.set_minor_locator(NullLocator())
            axis.set_ylabel(name)
            _count_along(axis)
        axes[-1].set_xlabel("update")

    return draw(f"losses_{stage}", f"{stage}: {', '.join(names)} over {len(rows)} updates.", len(names), 1.5, paint)


def horizon_psnr(found: Mapping[str, Any]) -> Picture:
    """Decibels at every step of the horizon."""
    lines = {"model": "imagined", "copy": "last frame repeated", "mean_image": "mean image"}
    caption = (
        f"Imagined against real frames after the recorded actions, {_counted(found['n'])}. Dotted: the real frames "
        "through the tokenizer, the most that the model can reach. Where things move at random, a blur has more "
        "decibels than a sharp frame that is equally likely."
    )

    def paint(axes: list[Axes], theme: Theme) -> None:
        steps = np.arange(1, len(found["n"]) + 1)
        for (name, text), color in zip(lines.items(), theme.series, strict=False):
            axes[0].plot(steps, found[f"{name}_psnr"], "o-", color=color, label=text, markersize=3, linewidth=1.4)
        axes[0].plot(steps, found["tokenizer_psnr"], ":", color=theme.ink, label="tokenizer", linewidth=1.2)
        _count_along(axes[0])
        axes[0].set_xlabel("step of imagination")
        axes[0].set_ylabel("PSNR (dB)")
        _legend(axes[0], theme)

    return draw("horizon_psnr", caption, 1, 3.0, paint)


def horizon_cells(found: Mapping[str, Any]) -> Picture:
    """Agent-cell accuracy and number of balls at every step of the horizon."""
    caption = (
        "Whether the imagined agent stands in the cell of the real one, and how many balls there are, "
        f"{_counted(found['n'])}. Bars are one standard error. Dotted: the real frames through the tokenizer."
    )
    lines = {"model": "imagined", "copy": "last frame repeated"}

    def paint(axes: list[Axes], theme: Theme) -> None:
        steps = np.arange(1, len(found["n"]) + 1)
        for (name, text), color in zip(lines.items(), theme.series, strict=False):
            share = np.asarray(found[name], np.float64)
            error = np.sqrt(share * (1 - share) / np.maximum(found["n"], 1))
            axes[0].errorbar(steps, share, error, fmt="o-", color=color, label=text, markersize=3, linewidth=1.4)
        axes[0].plot(steps, found["tokenizer"], ":", color=theme.ink, label="tokenizer", linewidth=1.2)
        for name, color in zip(("imagined", "real"), theme.series, strict=False):
            axes[1].plot(steps, found[f"{name}_balls"], "o-", color=color, label=name, markersize=3, linewidth=1.4)
        axes[0].set_ylim(-0.03, 1.03)
        axes[0].set_ylabel("agent in the right cell")
        axes[1].set_ylim(bottom=-0.05)
        axes[1].set_ylabel("balls")
        axes[1].set_xlabel("step of imagination")
        for axis in axes:
            _count_along(axis)
            _legend(axis, theme)

    return draw("horizon_cells", caption, 2, 2.2, paint)


def reward_calibration(found: Mapping[str, Any]) -> Picture:
    """Mean predicted reward for every true reward."""
    caption = (
        "Reward head on real validation frames: mean prediction for every true reward, bars are the spread over "
        f"frames. On the diagonal it is right. Frames per point: {', '.join(str(n) for n in found['n'])}."
    )

    def paint(axes: list[Axes], theme: Theme) -> None:
        true, predicted = (np.asarray(found[name], np.float64) for name in ("true", "predicted"))
        ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
        axes[0].plot(ends, ends, color=theme.faint, linewidth=1.5)
        axes[0].errorbar(true, predicted, found["spread"], fmt="o", color=theme.series[0], markersize=4)
        axes[0].set_xlabel("true reward")
        axes[0].set_ylabel("predicted reward")

    return draw("reward_calibration", caption, 1, 3.0, paint)


def returns_over_updates(
    rows: Sequence[Mapping[str, Any]], bc: Mapping[str, Any] | None, pmpo: Mapping[str, Any] | None
) -> Picture:
    """Imagined return over the updates of stage 4, and real returns before and after."""
    caption = (
        "PMPO. Above: mean return that the policy imagines, discounted, over the horizon only. Below: mean real "
        "return of whole episodes, undiscounted, before (BC) and after; bars are one standard error. The two have "
        "different units: what counts is that both rise."
    )

    def paint(axes: list[Axes], theme: Theme) -> None:
        steps, values = series(rows, "imagined_return")
        axes[0].plot(*thinned(steps, values), color=theme.series[0], linewidth=1.4)
        axes[0].set_ylabel("imagined return")
        last = max((row["step"] for row in rows), default=0) + 1
        for step, text, record, color in ((0, "BC", bc, theme.series[1]), (last, "PMPO", pmpo, theme.series[0])):
            if record is not None:
                axes[1].errorbar(step, record["mean_return"], record["stderr"] or 0, fmt="o", color=color, label=text)
                _legend(axes[1], theme)
        axes[1].set_ylabel("real return")
        axes[1].set_xlabel("update")
        for axis in axes:
            _count_along(axis)
            axis.set_xlim(-0.03 * last, 1.03 * last)

    return draw("returns", caption, 2, 1.9, paint)


def _counted(n: np.ndarray) -> str:
    """`256 windows`, or `256 windows at the first step, 31 at the last`."""
    return f"{n[0]} windows" if n[0] == n[-1] else f"{n[0]} windows at the first step, {n[-1]} at the last"
