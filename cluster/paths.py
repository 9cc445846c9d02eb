"""Settings that name a file, a folder or a URL: taken from where the command was given, whoever reads them later."""

import json
from contextlib import suppress
from pathlib import Path

SETTINGS = ("data.source", "tokenizer_training.perceptual_vgg", "tokenizer_training.perceptual_linear")
LISTS = ("data.mixture",)  # settings that are lists of such


def absolute_setting(assignment: str, folder: Path) -> str:
    """`KEY=VALUE` with its paths, but not URLs, taken from `folder`; any other setting as it is."""
    key, equals, value = assignment.partition("=")
    return f"{key}{equals}{absolute_value(key, value, folder)}"


def absolute_value(key: str, value: str, folder: Path) -> str:
    """The value of a setting, as the command line writes it, with its paths taken from `folder`."""
    if key in SETTINGS and value.lower() not in ("", "none", "null"):
        return absolute(value, folder)
    if key in LISTS:
        with suppress(TypeError, ValueError):  # of something else than a list of texts the config says so
            if isinstance(places := json.loads(value), list):
                return json.dumps([absolute(place, folder) for place in places])
    return value


def absolute(place: str, folder: Path) -> str:
    """A path taken from `folder`; a URL as it is."""
    return place if "://" in place else str(folder / place)
