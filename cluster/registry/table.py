"""The table of `dreamer4 runs`: how far every run is, and who writes it."""

from collections.abc import Sequence
from typing import Any

from cluster.registry.rules import RUNNING

MISSING, LOST = "–", "lost"
HEAD = ("run", "stage", "state", "step", "weights", "frames/s", "workers", "holder", "age")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """`rows` as `list_runs` gives them; a run that can't be read stands there with its error.

    Age is that of the facts. A run that said that it runs, and that nobody holds, is `lost`: its process was killed.
    """
    if not rows:
        return "no runs"
    cells = [HEAD, *(_cells(row) for row in rows if "error" not in row)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([*lines, *(f"{row['run']}  {row['error']}" for row in rows if "error" in row)])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    rate = row.get("frames_per_s")
    return (
        row["run"],
        _text(row.get("stage")),
        _state(row),
        _text(row.get("step")) + (f"/{row['steps']}" if row.get("steps") is not None else ""),
        _text(row.get("weights_version")),
        f"{rate:.4g}" if isinstance(rate, int | float) else MISSING,
        _text(row.get("workers")),
        _text(row["holder"]),
        _age(row["age_s"]),
    )


def _state(row: dict[str, Any]) -> str:
    return LOST if row.get("state") == RUNNING and row["holder"] is None else _text(row.get("state"))


def _text(value: Any) -> str:
    return MISSING if value is None else str(value)


def _age(seconds: float | None) -> str:
    """In the largest unit of which there is at least one."""
    if seconds is None:
        return MISSING
    whole = max(0, int(seconds))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if whole >= length:
            return f"{whole // length} {unit}"
    return f"{whole} s"
