"""Mouse movement as 11 x 11 classes, finer near 0, with the parameters of VPT (paper, section 4; arXiv 2206.11795)."""

import numpy as np

LIMIT = 10.0  # degrees per frame and axis; faster movement is clipped
MU = 10.0  # strength of the compression
BIN = 2.0  # width of a bin after compression
BINS = int(2 * LIMIT / BIN) + 1


def mu_law_encode(degrees: np.ndarray) -> np.ndarray:
    """Bin 0 to 10 (int64) of a movement along one axis; 5 is no movement."""
    x = np.clip(degrees, -LIMIT, LIMIT) / LIMIT
    compressed = np.sign(x) * np.log1p(MU * np.abs(x)) / np.log1p(MU) * LIMIT
    return np.round((compressed + LIMIT) / BIN).astype(np.int64)


def mu_law_decode(bins: np.ndarray) -> np.ndarray:
    """Degrees (float64) of the bins' centres."""
    x = (np.asarray(bins) * BIN - LIMIT) / LIMIT
    return np.sign(x) * np.expm1(np.abs(x) * np.log1p(MU)) / MU * LIMIT


def camera_encode(pitch_yaw: np.ndarray) -> np.ndarray:
    """Joint class 0 to 120 (int64 `[...]`) of movements `[..., 2]` in degrees; 60 is no movement."""
    bins = mu_law_encode(pitch_yaw)
    return bins[..., 0] * BINS + bins[..., 1]


def camera_decode(classes: np.ndarray) -> np.ndarray:
    """Movements `[..., 2]` in degrees (pitch, yaw) of the joint classes."""
    return mu_law_decode(np.stack(np.divmod(np.asarray(classes), BINS), axis=-1))
