"""What is in a dataset, in numbers, without reading a frame."""

from typing import Any

import numpy as np

from dreamer4.data.episodes import EpisodeDataset

ROWS = 200_000  # whose actions are counted; of larger datasets, stretches from everywhere
STRETCH = 1000
CLASSES = 16  # of a categorical part that are listed, the most frequent ones


def summary(data: EpisodeDataset, fps: float) -> dict[str, Any]:
    """Counts, lengths, returns, actions, events, codec and size. `fps` frames are a second of it.

    Raises:
        DataError: rows are damaged.
    """
    manifest = data.manifest
    size = sum(shard.bytes + shard.index_bytes for shard in manifest.shards)
    hours = manifest.frames / fps / 3600
    found: dict[str, Any] = {
        "environment": manifest.env,
        "episodes": manifest.episodes,
        "frames": manifest.frames,
        "hours": hours,
        "frame": list(manifest.frame),
        "codec": manifest.recording.codec.to_json(),
        "shards": len(manifest.shards),
        "bytes": size,
        "bytes_per_hour": size / hours,
        "lengths": _spread(data.lengths_E),
        "returns": _spread(data.returns_E),
        "successes": int(data.success_E.sum()),
        "terminal": int(data.terminal_E.sum()),
        "truncated": int(data.truncated_E.sum()),
        "known_actions": manifest.statistics["known_share"],
        "episodes_of_task": _named(manifest.tasks, data.task_E),
        "events_of_task": _named(manifest.tasks, data.event_task_V),
        "actions": _actions(data),
    }
    if "psnr_db" in manifest.statistics:
        found["psnr_db"] = manifest.statistics["psnr_db"]
    return found


def _spread(values: np.ndarray) -> dict[str, float]:
    points = np.percentile(values, [0, 25, 50, 75, 100])
    names = ("least", "quarter", "median", "three_quarters", "most")
    return {"mean": float(values.mean()), **dict(zip(names, map(float, points), strict=True))}


def _named(tasks: tuple[str, ...], numbers: np.ndarray) -> dict[str, int]:
    counts = np.bincount(numbers, minlength=len(tasks))
    return {task: int(count) for task, count in zip(tasks, counts, strict=True)}


def _actions(data: EpisodeDataset) -> dict[str, Any]:
    """By part: shares of classes, shares of pressed keys, or mean and deviation of axes."""
    count = data.frame_count
    starts = np.arange(0, count, max(STRETCH, STRETCH * count // ROWS))
    rows = np.concatenate([data.rows(np.arange(start, min(start + STRETCH, count))) for start in starts])
    known = rows["act_out"][rows["act_known"]]
    found, column = {}, 0
    for part in data.manifest.actions.parts:
        values = known[:, column : column + part.columns]
        column += part.columns
        if not len(values):
            found[part.name] = {}
        elif part.kind == "categorical":
            classes, counts = np.unique(values, return_counts=True)
            order = np.argsort(-counts, kind="stable")[:CLASSES]
            found[part.name] = {f"{classes[i]:g}": float(counts[i] / len(values)) for i in order}
        elif part.kind == "binary":
            found[part.name] = {str(key): float(share) for key, share in enumerate(values.mean(axis=0))}
        else:
            found[part.name] = {"mean": values.mean(axis=0).tolist(), "std": values.std(axis=0).tolist()}
    return found
