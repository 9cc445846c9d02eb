"""Where datasets lie: a folder of this machine, or of any file system that pyarrow or fsspec knows, read by ranges.

Ranges are read into arrays, not mapped: a file that is cut while it is open is then a sentence and not a dead process,
and memory holds what was asked for and nothing else.
"""

import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar
from weakref import finalize

from pyarrow import ArrowException, fs

from dreamer4.errors import DataError, RunError

Value = TypeVar("Value")
TRIES = 3  # of a range on a remote file system
REMOTE_ERRORS = (OSError, ArrowException, ImportError, ValueError, RuntimeError, EOFError)


class Recent(Generic[Value]):
    """The values used last, at most so many; made when they are asked for. Threads may share it."""

    def __init__(self, most: int):
        self.most, self._values, self._lock = most, OrderedDict[Hashable, Value](), Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()  # outside of the lock: two threads may make the same one, and one of them is kept
        with self._lock:
            value = self._values.setdefault(key, value)
            self._values.move_to_end(key)
            while len(self._values) > self.most:
                self._values.popitem(last=False)
        return value


class RangeFile(ABC):
    """An open file. Threads may share it."""

    name: str

    @abstractmethod
    def read_into(self, offset: int, target: memoryview) -> None:
        """Fills `target`, which is contiguous bytes, from the file's byte `offset` on.

        Raises:
            DataError: the file ends before, or can't be read; the message names it.
        """

    def read(self, offset: int, size: int) -> bytearray:
        data = bytearray(size)
        self.read_into(offset, memoryview(data))
        return data

    def _short(self, offset: int, size: int, found: int) -> DataError:
        return DataError(f"'{self.name}' ends {found} bytes after byte {offset}, where {size} should be: it was cut")


class Folder(ABC):
    """A folder of files that don't change. `name` is its path or URL."""

    name: str

    @abstractmethod
    def size(self, file: str) -> int | None:
        """Bytes of a file, or None if it isn't there. Raises `DataError` if the folder can't be reached."""

    @abstractmethod
    def open(self, file: str) -> RangeFile:
        """Raises `DataError` if the file can't be read."""

    def read(self, file: str) -> bytes:
        """A whole, small file. Raises `DataError` if it can't be read."""
        size = self.size(file)
        if size is None:
            raise DataError(f"can't read '{self.name}/{file}': no such file")
        return bytes(self.open(file).read(0, size))


def folder_at(place: Path | str) -> Folder:
    """The folder at a path, or at a URL such as `s3://bucket/data` or `https://host/data`.

    Raises:
        DataError: no file system of this kind is known, or it can't be reached.
    """
    return RemoteFolder(str(place)) if "://" in str(place) else LocalFolder(Path(place))


class LocalFolder(Folder):
    def __init__(self, path: Path):
        self.path, self.name = path, str(path)

    def size(self, file: str) -> int | None:
        try:
            return (self.path / file).stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"can't read '{self.path / file}': {error.strerror or error}") from error

    def open(self, file: str) -> RangeFile:
        return _LocalFile(self.path / file)


class _LocalFile(RangeFile):
    def __init__(self, path: Path):
        self.name = str(path)
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"can't read '{path}': {error.strerror or error}") from error
        finalize(self, os.close, self._descriptor)  # when the last thread that reads it has let it go

    def read_into(self, offset: int, target: memoryview) -> None:
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self._descriptor, [target[done:]], offset + done)
            except OSError as error:
                raise DataError(f"can't read '{self.name}': {error.strerror or error}") from error
            if not count:
                raise self._short(offset, len(target), done)
            done += count


class RemoteFolder(Folder):
    def __init__(self, url: str):
        self.name = url.split("?")[0].rstrip("/")
        try:
            self._files, self._root = _resolve(url)
        except REMOTE_ERRORS as error:
            raise DataError(f"can't use '{self.name}' for recordings: {_first_line(error)}") from error

    def size(self, file: str) -> int | None:
        try:
            return self._files.size(f"{self._root}/{file}")
        except FileNotFoundError:
            return None
        except REMOTE_ERRORS as error:
            raise DataError(f"can't read '{self.name}/{file}': {_first_line(error)}") from error

    def open(self, file: str) -> RangeFile:
        try:
            return _RemoteFile(f"{self.name}/{file}", self._files.ranges(f"{self._root}/{file}"))
        except REMOTE_ERRORS as error:
            raise DataError(f"can't read '{self.name}/{file}': {_first_line(error)}") from error


class _RemoteFile(RangeFile):
    def __init__(self, name: str, ranges: Callable[[int, int], bytes]):
        self.name, self._ranges = name, ranges

    def read_into(self, offset: int, target: memoryview) -> None:
        if not len(target):
            return
        for left in reversed(range(TRIES)):
            try:
                data = self._ranges(offset, len(target))
                break
            except REMOTE_ERRORS as error:
                if not left:
                    raise DataError(f"can't read '{self.name}': {_first_line(error)}") from error
        if len(data) != len(target):
            raise self._short(offset, len(target), len(data))
        target[:] = data


class _Arrow:
    """A file system of pyarrow."""

    def __init__(self, files: fs.FileSystem):
        self.files = files

    def size(self, path: str) -> int:
        info = self.files.get_file_info(path)
        if info.type != fs.FileType.File:
            raise FileNotFoundError(path)
        return info.size

    def ranges(self, path: str) -> Callable[[int, int], bytes]:
        file = self.files.open_input_file(path)
        return lambda offset, size: file.read_at(size, offset)


class _Fsspec:
    """A file system of fsspec; its open files read ahead, its ranges are what was asked for."""

    def __init__(self, files: Any):
        self.files = files

    def size(self, path: str) -> int:
        try:
            size = self.files.size(path)
        except FileNotFoundError as error:  # also where the server can't be reached
            if isinstance(error.__cause__, OSError):
                raise ConnectionError(str(error.__cause__)) from error
            raise
        if size is None:
            raise OSError("the server doesn't say how long the file is, so parts of it can't be asked for")
        return size

    def ranges(self, path: str) -> Callable[[int, int], bytes]:
        return lambda offset, size: self.files.cat_file(path, start=offset, end=offset + size)


def _resolve(url: str) -> tuple[_Arrow | _Fsspec, str]:
    """By pyarrow where it knows the scheme, else by fsspec."""
    try:
        files, path = fs.FileSystem.from_uri(url)
        return _Arrow(files), path.rstrip("/")
    except ArrowException:
        import fsspec

        known, path = fsspec.core.url_to_fs(url)
        return _Fsspec(known), str(path).rstrip("/")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def local_path(place: Path | str) -> Path:
    """The path of a folder that is written to. Raises `RunError` for a URL."""
    if "://" in str(place):
        raise RunError(f"can't write a dataset to '{place}': write it to a disk and copy the finished folder there")
    return Path(place)
