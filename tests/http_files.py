"""A server of files on loopback: ranges as the web and S3 know them, and a count of what was asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class FileServer(ThreadingHTTPServer):
    """Serves a folder; `S3` clients see its parent's name as a bucket if they ask path-style."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.served = folder, dict[str, int]()  # bytes by file

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        name = self.path.split("?")[0].lstrip("/")
        path = self.server.folder / name
        if not path.is_file():
            self._send(404, b"", {}, False)
            return
        data, headers, status = path.read_bytes(), {"Accept-Ranges": "bytes", "ETag": '"1"'}, 200
        headers["Last-Modified"] = "Sat, 28 Nov 2026 00:00:00 GMT"
        if wanted := self.headers.get("Range"):
            first, last = (int(place or len(data) - 1) for place in wanted.removeprefix("bytes=").split("-"))
            headers["Content-Range"], status = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}", 206
            data = data[first : last + 1]
        if body:
            self.server.served[path.name] = self.server.served.get(path.name, 0) + len(data)
        self._send(status, data, headers, body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def file_server(folder: Path) -> Iterator[FileServer]:
    server = FileServer(folder)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
