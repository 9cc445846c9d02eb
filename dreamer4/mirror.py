"""Copies of checkpoints on any file system that pyarrow or fsspec knows, such as `s3://bucket/runs/mine`.

An object store can't rename a folder, so the record of a checkpoint, which has the checksums of its other files, is
what makes it whole: written last, removed first.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import ArrowException, fs

from dreamer4.checkpoint import NUMBERS, RECORD, Checkpoints
from dreamer4.errors import RunError

BLOCK = 1 << 24  # bytes that are copied at a time


class Mirror:
    """The checkpoints of one stage below a URL: `url/<step>/{weights.safetensors, state.safetensors, checkpoint.json}`.

    Args:
        url: of a folder, which need not exist. One writer at a time.

    Raises:
        RunError: no file system of this kind is known, or it can't be reached.
    """

    def __init__(self, url: str, keep: int = 2):
        self.url, self.keep = url.rstrip("/"), keep
        with self._reachable():
            self.files, self.root = _resolve(self.url)

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, ascending."""
        with self._reachable():
            found = self.files.get_file_info(fs.FileSelector(self.root, allow_not_found=True, recursive=True))
        matches = [re.search(rf"(?:^|/)(\d{{8,}})/{RECORD}$", info.path) for info in found]
        return sorted(int(match[1]) for match in matches if match)

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def push(self, folder: Path) -> None:
        """Copies a checkpoint there, then removes those beyond the newest `keep`.

        Args:
            folder: as `Checkpoints.save` returns it.

        Raises:
            RunError: it can't be written; the former checkpoints are untouched.
        """
        with self._reachable():
            self._remove(int(folder.name))  # done again after a fault: old and new files must not mix
            self.files.create_dir(self._place(int(folder.name)), recursive=True)
            for name in (*NUMBERS, RECORD):
                with (
                    open(folder / name, "rb") as source,
                    self.files.open_output_stream(f"{self._place(int(folder.name))}/{name}") as sink,
                ):
                    shutil.copyfileobj(source, sink, BLOCK)
        for old in self.steps()[: -self.keep]:
            with self._reachable():
                self._remove(old)

    def pull(self, step: int, checkpoints: Checkpoints) -> None:
        """Copies the checkpoint of a step into a folder of checkpoints.

        Raises:
            RunError: it isn't there, or can't be read or written.
        """
        checkpoints.receive(step, lambda folder: self._download(step, folder))

    def _download(self, step: int, folder: Path) -> None:
        for name in (*NUMBERS, RECORD):
            with (
                self._reachable(),
                self.files.open_input_stream(f"{self._place(step)}/{name}") as source,
                open(folder / name, "wb") as sink,
            ):
                shutil.copyfileobj(source, sink, BLOCK)

    def _remove(self, step: int) -> None:
        record = f"{self._place(step)}/{RECORD}"
        if self.files.get_file_info(record).type != fs.FileType.NotFound:
            self.files.delete_file(record)
        if self.files.get_file_info(self._place(step)).type != fs.FileType.NotFound:
            self.files.delete_dir(self._place(step))

    def _place(self, step: int) -> str:
        return f"{self.root}/{step:08d}"

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ArrowException, ImportError, ValueError) as error:
            raise RunError(f"can't use '{self.url}' for checkpoints: {str(error).strip().splitlines()[0]}") from error


def _resolve(url: str) -> tuple[fs.FileSystem, str]:
    """A file system and the path within it; by pyarrow where it knows the scheme, else by fsspec."""
    try:
        return fs.FileSystem.from_uri(url)
    except ArrowException:
        if "://" not in url:
            raise ValueError("it is no URL, such as s3://bucket/folder or file:///folder") from None
        import fsspec

        known, path = fsspec.core.url_to_fs(url)
        return fs.PyFileSystem(fs.FSSpecHandler(known)), path
