"""HDF5 files read by a process of their own, because a damaged one can make the HDF5 library run for ever.

Nothing interrupts C code that loops, except the end of its process. So the process sets itself an alarm before every
read: what isn't read by then ends it, whether it loops, waits or crashes, and the reader here says so. It is started at
the first read, kept for the next ones, and begun again after it was lost.

    request     one line of JSON: what to read
    answer      8 bytes (length), so much JSON that says what the values are, and the bytes of all arrays
"""

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any
from weakref import finalize

import numpy as np

from dreamer4.errors import DataError

SECONDS = 60.0  # that any read may take, whatever the size of the file
BYTES_PER_SECOND = 20e6  # of a slow disk: a read may be of a large part of the file
MEMORY = 4 << 30  # bytes that the process may take; sizes in a damaged file are any
DAMAGE = (KeyError, OSError, RuntimeError, ValueError, TypeError, AttributeError, MemoryError)  # what h5py raises of it


class Hdf5Reader:
    """Reads parts of one file.

    Args:
        seconds: that a read may take; None = 60, and one more for every 20 MB of the file.

    Raises:
        DataError: h5py isn't installed.
    """

    def __init__(self, path: Path, seconds: float | None = None):
        if find_spec("h5py") is None:
            raise DataError("Minari datasets in HDF5 need h5py: pip install 'dreamer4-ray[minari]'")
        self.path = path
        self.seconds = SECONDS + path.stat().st_size / BYTES_PER_SECOND if seconds is None else seconds
        self._process: subprocess.Popen[bytes] | None = None

    def length(self, node: str) -> int:
        return self._ask({"node": node, "length": True})

    def read(self, node: str, start: int = 0, stop: int | None = None) -> Any:
        """Rows of an array, or of all arrays of a group, as dict or, where it holds a tuple, as list.

        Raises:
            DataError: naming the file: it lacks the node, is damaged, or can't be read in time.
        """
        return self._ask({"node": node, "rows": [start, stop]})

    def _ask(self, request: dict[str, Any]) -> Any:
        what = f"'{self.path}' is damaged, or lacks a part of '{request['node']}'"
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            head = json.loads(_exactly(process.stdout, int.from_bytes(_exactly(process.stdout, 8), "little")))
            if "error" in head:
                raise DataError(f"{what}: {head['error']}")
            return _values(head["value"], process.stdout)
        except (EOFError, BrokenPipeError):
            self._process = None
            process.kill()
            _closed(process)
            if process.returncode == -signal.SIGALRM:
                limit = f"the HDF5 library didn't end within {self.seconds:g} s (--patience gives it longer)"
                raise DataError(f"{what}: {limit}") from None
            raise DataError(f"{what}: the HDF5 library ended its process ({process.returncode})") from None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            paths = os.pathsep.join(path for path in sys.path if path)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(self.path), str(self.seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": paths},
            )
            finalize(self, _closed, self._process)
        return self._process


def _closed(process: subprocess.Popen[bytes]) -> None:
    """A process whose input ends, ends; at the latest by its alarm."""
    assert process.stdin is not None and process.stdout is not None
    with ExitStack() as stack:
        stack.callback(process.wait)
        stack.callback(process.stdout.close)
        with suppress(BrokenPipeError):
            process.stdin.close()


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    data = pipe.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _values(what: dict[str, Any], pipe: IO[bytes]) -> Any:
    """What `_described` has taken apart; arrays of bytes of different lengths become arrays of objects."""
    kind, inner = next(iter(what.items()))
    if kind == "number":
        return inner
    if kind == "dict":
        return {key: _values(value, pipe) for key, value in inner.items()}
    if kind == "list":
        return [_values(value, pipe) for value in inner]
    if kind == "blobs":
        blobs = np.empty(len(inner), object)
        blobs[:] = [_exactly(pipe, size) for size in inner]
        return blobs
    dtype, shape = np.dtype(inner[0]), inner[1]
    return np.frombuffer(bytearray(_exactly(pipe, dtype.itemsize * int(np.prod(shape)))), dtype).reshape(shape)


def _described(value: Any, data: list[Any]) -> dict[str, Any]:
    """Says what a value is, and adds its bytes to `data`."""
    if isinstance(value, int):
        return {"number": value}
    if isinstance(value, dict):
        return {"dict": {key: _described(inner, data) for key, inner in value.items()}}
    if isinstance(value, list):
        return {"list": [_described(inner, data) for inner in value]}
    if value.dtype.hasobject:
        blobs = [bytes(blob) for blob in value]
        data.extend(blobs)
        return {"blobs": [len(blob) for blob in blobs]}
    data.append(np.ascontiguousarray(value).tobytes())
    return {"array": [value.dtype.str, value.shape]}


def _read(file: Any, request: dict[str, Any]) -> Any:
    node = file[request["node"]]
    return len(node) if "length" in request else _rows(node, slice(*request["rows"]))


def _rows(node: Any, rows: slice) -> Any:
    if not hasattr(node, "items"):
        return np.asarray(node[rows])
    found = {key: _rows(inner, rows) for key, inner in node.items()}
    if "_index_0" in found:  # a tuple
        return [found[f"_index_{index}"] for index in range(len(found))]
    return found


def serve(path: str, seconds: float) -> None:
    """Answers requests until there are no more."""
    import h5py

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    file = None
    for line in sys.stdin.buffer:
        data: list[bytes] = []
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            file = file or h5py.File(path, "r")
            head = {"value": _described(_read(file, json.loads(line)), data)}
        except DAMAGE as error:
            head, data = {"error": str(error)}, []
        signal.setitimer(signal.ITIMER_REAL, 0)  # who asks may take its time to listen
        text = json.dumps(head).encode()
        sys.stdout.buffer.write(len(text).to_bytes(8, "little") + text)
        for part in data:
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve(sys.argv[1], float(sys.argv[2]))
