"""Numbers about frames and predictions, in numpy: what `actors.inspector` reports, without its models."""

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from dreamer4.envs.minigrid import agent_cell, classify
from dreamer4.metrics import mean_stderr

GROUPS = 8  # of true rewards, where there are more different ones


def squared_error(a_HWC: np.ndarray, b_HWC: np.ndarray) -> np.ndarray:
    """Mean `[...]` over the numbers of frames `[..., H, W, C]`."""
    return np.square(a_HWC - b_HWC, dtype=np.float64).mean(axis=(-3, -2, -1))


def decibels(error: Any) -> Any:
    """Peak signal-to-noise ratio of a mean squared error of frames in [0, 1]; infinite where there is no error."""
    with np.errstate(divide="ignore"):
        psnr = -10 * np.log10(np.asarray(error, np.float64))
    return psnr if psnr.ndim else psnr.item()


def to_bytes(frames_HWC: np.ndarray) -> np.ndarray:
    return (frames_HWC.clip(0, 1) * 255).round().astype(np.uint8)


def tiles_in(frames: Iterable[np.ndarray]) -> frozenset[str]:
    """Names of all tiles that occur in real frames of a grid world."""
    return frozenset(name for frame in frames for row in classify(frame) for name, _ in row)


def agent_cells(frames_HWC: np.ndarray, among: Collection[str]) -> np.ndarray:
    """Row and column `[..., 2]` of the agent in frames `[..., H, W, C]`; -1 where there is none."""
    flat = frames_HWC.reshape(-1, *frames_HWC.shape[-3:])
    found = [agent_cell(frame, among) or (-1, -1) for frame in flat]
    return np.array(found).reshape(*frames_HWC.shape[:-3], 2)


def ball_counts(frames_HWC: np.ndarray, among: Collection[str]) -> np.ndarray:
    """Number `[...]` of balls in frames `[..., H, W, C]`."""
    flat = frames_HWC.reshape(-1, *frames_HWC.shape[-3:])
    found = [sum(name.endswith("ball") for row in classify(frame, among) for name, _ in row) for frame in flat]
    return np.array(found).reshape(frames_HWC.shape[:-3])


def calibration(true_N: np.ndarray, predicted_N: np.ndarray) -> dict[str, np.ndarray]:
    """Predictions by true value, groups `[G]` in ascending order: `true`, mean `predicted`, its `spread`, and `n`.

    Every value is a group of its own, or, where there are more than `GROUPS`, a range of equal width.
    """
    values, group_N = np.unique(true_N, return_inverse=True)
    if len(values) > GROUPS:
        inner = np.linspace(values[0], values[-1], GROUPS + 1)[1:-1]
        group_N = np.unique(np.digitize(true_N, inner), return_inverse=True)[1]
    n = np.bincount(group_N)

    def means(x_N: np.ndarray) -> np.ndarray:
        return np.bincount(group_N, weights=x_N) / n

    predicted = means(predicted_N)
    spread = np.sqrt(means((predicted_N - predicted[group_N]) ** 2))
    return {"true": means(true_N), "predicted": predicted, "spread": spread, "n": n}


def mean_and_error(values_N: np.ndarray) -> dict[str, float]:
    mean, stderr = mean_stderr(values_N.tolist())
    return {"mean": mean, "stderr": stderr}


def mean_or_nan(values_N: np.ndarray) -> float:
    return float(values_N.mean()) if len(values_N) else float("nan")


def ratio_of_means(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Not a number where there is nothing to compare, infinite where only b has no error."""
    if not len(b_N) or not (a_N.any() or b_N.any()):
        return float("nan")
    return float(a_N.mean() / b_N.mean()) if b_N.any() else float("inf")
