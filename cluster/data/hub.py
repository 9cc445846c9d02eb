"""Where published folders go and come from: a folder of this machine, or a repository of the Hugging Face hub."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dreamer4.data.publish import CARD, SUFFIXES, Files, publish, stage
from dreamer4.errors import ConfigError, DataError, RunError

PREFIX = "hf://"


def push(files: Files, target: str, kind: str, public: bool = False) -> str:
    """Publishes; returns where.

    Args:
        target: a folder, or `hf://OWNER/NAME`.
        kind: `dataset` or `model`.
        public: of a repository that is made by it.

    Raises:
        ConfigError: the target is neither.
        RunError: it can't be written, or huggingface_hub isn't installed.
    """
    if not target.startswith(PREFIX):
        publish(files, _folder(target))
        return target
    name, hub = _repository(target), _hub()
    with tempfile.TemporaryDirectory() as folder:
        stage(files, Path(folder))
        try:
            hub.create_repo(name, repo_type=kind, private=not public, exist_ok=True)
            hub.upload_folder(repo_id=name, repo_type=kind, folder_path=folder, delete_patterns="*")
        except (OSError, ValueError, RuntimeError) as error:  # what huggingface_hub raises of the network and of rights
            raise RunError(f"can't publish to '{target}': {error}") from error
    return f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"


@contextmanager
def pull(source: str, kind: str, revision: str | None = None) -> Iterator[Path]:
    """A folder with what was published; it isn't checked yet.

    Raises:
        ConfigError: the source is neither a folder nor a repository.
        DataError: it can't be read.
        RunError: huggingface_hub isn't installed.
    """
    if not source.startswith(PREFIX):
        if revision is not None:
            raise ConfigError(f"--revision is for the hub, '{source}' is a folder")
        yield _folder(source)
        return
    name, hub = _repository(source), _hub()
    with tempfile.TemporaryDirectory() as folder:
        wanted = [f"*{suffix}" for suffix in SUFFIXES if suffix != ".md"] + [CARD]
        try:
            hub.snapshot_download(name, repo_type=kind, revision=revision, local_dir=folder, allow_patterns=wanted)
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"can't read '{source}': {error}") from error
        yield Path(folder)


def _folder(place: str) -> Path:
    if "://" in place:
        raise ConfigError(f"'{place}' is neither a folder nor hf://OWNER/NAME")
    return Path(place).absolute()


def _repository(place: str) -> str:
    name = place.removeprefix(PREFIX).removeprefix("datasets/")
    if not re.fullmatch(r"[\w.\-]+/[\w.\-]+", name):
        raise ConfigError(f"a repository of the hub is hf://OWNER/NAME, got '{place}'")
    return name


def _hub() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise RunError("the hub needs huggingface_hub: pip install 'dreamer4-ray[hub]', or give a folder") from None
    return HfApi()
