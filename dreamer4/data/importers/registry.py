"""The families of recordings that can be imported, by name."""

from pathlib import Path

from dreamer4.data.importers.gymnasium import GymnasiumImporter
from dreamer4.data.importers.importer import Importer, Options
from dreamer4.data.importers.lerobot import LeRobotImporter
from dreamer4.data.importers.minari import MinariImporter
from dreamer4.data.importers.video import VideoImporter
from dreamer4.data.importers.vpt import VptImporter
from dreamer4.errors import ConfigError, nearest

IMPORTERS: dict[str, type[Importer]] = {
    "vpt": VptImporter,
    "gymnasium": GymnasiumImporter,
    "minari": MinariImporter,
    "lerobot": LeRobotImporter,
    "video": VideoImporter,
}


def importer(family: str, root: Path, options: Options) -> Importer:
    """Raises `ConfigError` if there is no such family, `DataError` if nothing is at `root` or the options don't fit."""
    if family not in IMPORTERS:
        raise ConfigError(f"no recordings of kind '{family}' can be imported{nearest(family, IMPORTERS)}")
    return IMPORTERS[family](root, options)
