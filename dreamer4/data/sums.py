"""The statistics of a dataset, from the sums that each of its shards has kept."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dreamer4.data.schema import Shard


def statistics_of(shards: "Sequence[Shard]") -> dict[str, Any]:
    """Over episodes: mean and standard deviation of the return, share of successes, mean length in frames. Over
    frames: share of known actions, mean and standard deviation of actions by column and of pixels by channel. Of
    video: the peak signal-to-noise ratio in dB.
    """
    episodes, frames = (sum(getattr(shard, name) for shard in shards) for name in ("episodes", "frames"))
    count, known = max(episodes, 1), sum(shard.known for shard in shards)
    mean, std = _moments(count, [[s.return_sum] for s in shards], [[s.return_square_sum] for s in shards])
    actions = _moments(known, [s.action_sum for s in shards], [s.action_square_sum for s in shards])
    pixels = _moments(
        sum(s.pixels for s in shards), [s.pixel_sum for s in shards], [s.pixel_square_sum for s in shards]
    )
    found = {
        "return_mean": mean[0],
        "return_std": std[0],
        "success_share": sum(shard.successes for shard in shards) / count,
        "length_mean": frames / count,
        "known_share": known / max(frames, 1),
        "action_mean": actions[0],
        "action_std": actions[1],
        "pixel_mean": pixels[0],
        "pixel_std": pixels[1],
    }
    if chunks := sum(shard.error_chunks for shard in shards):
        error = sum(shard.error_sum for shard in shards) / chunks
        found["psnr_db"] = float(-10 * np.log10(max(error, 1e-12)))
    return found


def alike(statistics: Any, shards: "Sequence[Shard]") -> bool:
    """Whether they are those of the shards, but for rounding, which may depend on the machine."""
    try:
        wanted = statistics_of(shards)
        return statistics.keys() == wanted.keys() and all(
            np.allclose(np.ravel(statistics[key]), np.ravel(value), rtol=1e-4, atol=1e-4, equal_nan=True)
            for key, value in wanted.items()
        )
    except (AttributeError, TypeError, ValueError, OverflowError):
        return False


def _moments(
    count: int, sums: Sequence[Sequence[float]], squares: Sequence[Sequence[float]]
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per column, from sums per shard."""
    mean = np.sum(np.array(sums, np.float64), axis=0) / max(count, 1)
    square = np.sum(np.array(squares, np.float64), axis=0) / max(count, 1)
    return mean.tolist(), np.sqrt(np.maximum(square - mean**2, 0)).tolist()
