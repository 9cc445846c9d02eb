"""What importers have in common: a fixed list of sources, a common `Recording`, and a stream of episodes per source."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from dreamer4.data.importers.canvas import Canvas
from dreamer4.data.importers.steps import Recorded
from dreamer4.data.importers.vpt_actions import Rules
from dreamer4.data.schema import Recording
from dreamer4.errors import DataError


@dataclass(frozen=True)
class Options:
    """How to import; every family reads what concerns it and refuses what it can't do.

    Attributes:
        canvas: frame of the dataset; None = the size of the source's frames, which all have to share it.
        fps: frames per second of the dataset; None = as recorded. Only films without actions can be converted.
        name: of the environment in the dataset; "" = the family's own.
        key: which of several pictures per frame: a camera of LeRobot, an entry of a Minari observation.
        exclude: names of sources to leave out, such as recordings with the debug overlay.
        rules: of VPT recordings.
        like: of a dataset of labelled recordings, whose action space and tasks unlabelled films share.
        patience: seconds that reading a part of an HDF5 file may take; None = by the size of the file.
    """

    canvas: Canvas | None = None
    fps: Fraction | None = None
    name: str = ""
    key: str = ""
    exclude: frozenset[str] = frozenset()
    rules: Rules = field(default_factory=Rules)
    like: Recording | None = None
    patience: float | None = None


class Importer(ABC):
    """Recordings in somebody's format. Plain and cheap to make, so every worker makes its own.

    Raises:
        DataError: nothing to import is at `root`, or the options don't fit the family.
    """

    per_shard = 1  # sources whose episodes share a file

    def __init__(self, root: Path, options: Options):
        self.root, self.options = Path(root), options
        if not self.root.exists():
            raise DataError(f"there is nothing at '{root}': give --source an existing file or folder")

    @property
    @abstractmethod
    def recording(self) -> Recording:
        """What all episodes have in common."""

    @abstractmethod
    def sources(self) -> list[str]:
        """Names of all sources in a fixed order, found without decoding anything."""

    @abstractmethod
    def files(self, source: str) -> list[Path]:
        """All files that a source's episodes are made of, also those that it shares with other sources.

        Raises:
            DataError: one of them is missing, or what tells which they are is damaged.
        """

    @abstractmethod
    def episodes(self, source: str) -> Iterator[Recorded]:
        """The episodes of one source, in order; the next one is asked for when the last one's parts are read.

        Raises:
            DataError: naming file and row: something is missing, damaged, or doesn't fit.
        """


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors about contents also say in which file they are."""
    try:
        yield
    except DataError as error:
        raise error if str(path) in str(error) else DataError(f"'{path}': {error}") from error


def refuse_rate(options: Options, family: str) -> None:
    """Raises `DataError` where a rate is asked for that can't be had without inventing or dropping actions."""
    if options.fps is not None:
        raise DataError(
            f"--fps is for films without actions; a {family} recording has one action per frame, and another rate "
            "would drop or invent some"
        )


def without(names: Sequence[str], excluded: frozenset[str]) -> list[str]:
    """The names that are not excluded, sorted; a name is excluded by itself, its last part, or that without suffix."""
    return sorted(n for n in names if not {n, Path(n).name, Path(n).stem} & excluded)
