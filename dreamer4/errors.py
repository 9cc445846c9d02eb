"""Errors that a user can act on: one sentence that names the thing, the numbers and what to do."""

import difflib
from collections.abc import Iterable


class DreamerError(Exception):
    """A mistake of input or environment. The command line prints its one sentence and exits with 2."""


class ConfigError(DreamerError):
    """Unknown or impossible configuration."""


class DataError(DreamerError):
    """A dataset that is missing, damaged, or doesn't fit."""


class CheckpointError(DreamerError):
    """A checkpoint that is missing, damaged, or of another model."""


class RunError(DreamerError):
    """A run directory or a service that can't be used."""


class LeaseLostError(RunError):
    """Somebody else may write the run by now, or that can't be excluded: stop writing at once."""


class NonFiniteError(DreamerError):
    """A loss or gradient that is not finite; the last good checkpoint is kept."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"`, or the sorted known names where none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"
