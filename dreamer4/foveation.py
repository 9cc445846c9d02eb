"""Mouse movement as classes, finer near 0; by default 11 x 11 with the parameters of VPT (paper, section 4).

VPT is arXiv 2206.11795. A dataset whose mouse is stored in classes names its `Foveation` in the action space, because
classes of another one mean other movements.
"""

from dataclasses import dataclass

import numpy as np

from dreamer4.errors import DataError


@dataclass(frozen=True)
class Foveation:
    """How movement along one axis becomes a class.

    Raises:
        DataError: `limit` or `mu` is not positive, or `bins` is not an odd number of at least 3.
    """

    limit: float = 10.0  # degrees per frame and axis; faster movement is clipped
    mu: float = 10.0  # strength of the compression
    bins: int = 11  # per axis; odd, so that one of them is no movement

    def __post_init__(self) -> None:
        if not (0 < self.limit < 1e6 and 0 < self.mu < 1e6 and self.bins % 2 == 1 and 3 <= self.bins <= 1001):
            raise DataError(
                f"can't make classes of mouse movement with limit {self.limit:g}, mu {self.mu:g} and {self.bins} bins: "
                "limit and mu must be positive, bins odd and from 3 to 1001"
            )

    @property
    def classes(self) -> int:
        """Of pitch and yaw together."""
        return self.bins**2


VPT = Foveation()


def mu_law_encode(degrees: np.ndarray, by: Foveation = VPT) -> np.ndarray:
    """Bin 0 to `bins - 1` (int64) of a movement along one axis; the middle one (5 of 11) is no movement."""
    x = np.clip(degrees, -by.limit, by.limit) / by.limit
    compressed = np.sign(x) * np.log1p(by.mu * np.abs(x)) / np.log1p(by.mu)
    return np.round((compressed + 1) * (by.bins // 2)).astype(np.int64)


def mu_law_decode(bins: np.ndarray, by: Foveation = VPT) -> np.ndarray:
    """Degrees (float64) of the bins' centres."""
    half = by.bins // 2
    x = (np.asarray(bins) - half) / half
    return np.sign(x) * np.expm1(np.abs(x) * np.log1p(by.mu)) / by.mu * by.limit


def camera_encode(pitch_yaw: np.ndarray, by: Foveation = VPT) -> np.ndarray:
    """Joint class (int64 `[...]`) of movements `[..., 2]` in degrees; the middle one (60 of 121) is no movement."""
    bins = mu_law_encode(pitch_yaw, by)
    return bins[..., 0] * by.bins + bins[..., 1]


def camera_decode(classes: np.ndarray, by: Foveation = VPT) -> np.ndarray:
    """Movements `[..., 2]` in degrees (pitch, yaw) of the joint classes."""
    return mu_law_decode(np.stack(np.divmod(np.asarray(classes), by.bins), axis=-1), by)
