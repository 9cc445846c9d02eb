"""The command `dreamer4 data import`. Imports are inside of functions: every start of the command line reads this."""

import argparse
import json
import os
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamer4.errors import ConfigError, DataError

if TYPE_CHECKING:
    from actors.importer import Job

FAMILIES = ("vpt", "gymnasium", "minari", "lerobot", "video")
FITS = ("letterbox", "stretch", "crop")
TEXT = """What each kind is, its rules and the examples are in docs/importing.md. An interrupted import goes on with the
same command; done twice it does nothing the second time, and new sources are added."""


def add_import_arguments(verb: argparse.ArgumentParser) -> None:
    verb.epilog = TEXT
    verb.add_argument("family", choices=FAMILIES, help="kind of the recordings")
    verb.add_argument("--source", type=Path, required=True, metavar="PATH", help="folder or file to import")
    verb.add_argument("--out", type=Path, required=True, metavar="DATASET", help="folder of the dataset")
    verb.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes; 1 uses no Ray")
    verb.add_argument("--frame", metavar="HxW", help="frames of the dataset, such as 64x64; by default as recorded")
    verb.add_argument("--fit", choices=FITS, default="letterbox", help="how other frames are made to fit")
    verb.add_argument("--codec", default="auto", metavar="NAME", help="auto, raw, zstd (exact) or h264 (lossy)")
    verb.add_argument("--fps", metavar="N", help="video: another frame rate; by default every frame is kept")
    verb.add_argument("--like", type=Path, metavar="DATASET", help="video: take action space and tasks from there")
    verb.add_argument("--env", default="", metavar="NAME", help="name of the environment in the dataset")
    verb.add_argument("--key", default="", metavar="NAME", help="lerobot: the camera; minari: the picture")
    verb.add_argument("--patience", type=float, metavar="SECONDS", help="minari: that HDF5 may take for 64 frames")
    verb.add_argument("--exclude", type=Path, metavar="FILE", help="names of sources to leave out, one a line or JSON")
    verb.add_argument("--keep-going", action="store_true", help="leave out sources with a fault, report them, exit 1")
    verb.add_argument("--retry", action="store_true", help="try sources again that were left out")
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    vpt = verb.add_argument_group("vpt")
    vpt.add_argument("--camera-from", choices=["state", "mouse"], default="state", help="rule R6 of docs/importing.md")
    vpt.add_argument("--camera", default="10,10,11", metavar="LIMIT,MU,BINS", help="foveation, or 'degrees'")
    vpt.add_argument("--recorder", default="", metavar="X.Y", help="version, where paths don't tell it")
    vpt.add_argument("--keep-escape", action="store_true", help="ESC in a GUI stays ESC, as BASALT wants it")


def import_data(options: argparse.Namespace) -> None:
    """Exits with 1 if sources were left out because of a fault."""
    from cluster.data.importing import QUARANTINE, import_recordings
    from dreamer4.files import write_json

    job = job_of(options)
    counts = import_recordings(job, options.workers, options.retry)
    if options.json is not None:
        write_json(options.json, counts)
    print("  ".join(f"{name} {value:.6g}" for name, value in counts.items()))
    if counts["quarantined"]:
        print(
            f"dreamer4: {counts['quarantined']} sources have a fault, see '{job.folder / QUARANTINE}'", file=sys.stderr
        )
        raise SystemExit(1)


def job_of(options: argparse.Namespace) -> "Job":
    """Raises `ConfigError` or `DataError` if an option is impossible."""
    from actors.importer import Job
    from dreamer4.data.importers.canvas import Canvas
    from dreamer4.data.importers.importer import Options
    from dreamer4.data.importers.vpt_actions import Rules

    if options.workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {options.workers}")
    if options.patience is not None and not 0 < options.patience < 1e9:
        raise ConfigError(f"--patience is seconds above 0, got {options.patience:g}")
    how = Options(
        canvas=None if options.frame is None else Canvas(*_size(options.frame), options.fit),
        fps=None if options.fps is None else _rate(options.fps),
        name=options.env,
        key=options.key,
        exclude=frozenset() if options.exclude is None else read_names(options.exclude),
        rules=Rules(options.recorder, options.camera_from, _foveation(options.camera), options.keep_escape),
        like=None if options.like is None else _recording(options.like),
        patience=options.patience,
    )
    return Job(
        options.family, options.source.absolute(), how, options.out.absolute(), options.codec, options.keep_going
    )


def read_names(path: Path) -> frozenset[str]:
    """Names of a JSON list, or one a line."""
    try:
        text = path.read_text()
        names: Any = json.loads(text) if text.lstrip().startswith("[") else text.split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"can't read names from '{path}': {error}") from error
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"'{path}' holds something else than names")
    return frozenset(name.strip() for name in names if name.strip())


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ConfigError(f"--frame is height x width, such as 360x640, got '{text}'")
    return int(height), int(width)


def _rate(text: str) -> Fraction:
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"--fps is a number such as 20 or 30000/1001, got '{text}'") from None
    if not 0 < rate <= 1000:
        raise ConfigError(f"--fps must be above 0 and at most 1000, got '{text}'")
    return rate


def _foveation(text: str) -> Any:
    from dreamer4.foveation import Foveation

    if text == "degrees":
        return None
    try:
        limit, mu, bins = text.split(",")
        return Foveation(float(limit), float(mu), int(bins))
    except ValueError:
        raise ConfigError(f"--camera is LIMIT,MU,BINS such as 10,10,11, or 'degrees', got '{text}'") from None


def _recording(folder: Path) -> Any:
    from dreamer4.data.episodes import EpisodeDataset

    return EpisodeDataset.open(folder).manifest.recording
