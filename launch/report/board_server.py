"""The board's folder is served over http to this machine: its own files alone, by their names.

with BoardServer(Path("runs/board"), host="127.0.0.1", port=8008) as server:
    server.serve(30)          # answers for 30 seconds; the caller then writes the next state
"""

import re
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

# All files that Board writes; nothing else in the folder is served.
_FILES = re.compile(r"board\.html|runs\.js|data/[0-9a-f]{12}\.js|pictures/[0-9a-f]{12}/step-\d{8,}\.jpg")
_KINDS = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".jpg": "image/jpeg"}
_LOCAL = {"127.0.0.1", "localhost", "::1"}
_SLOW_S = 10.0  # that a silent client keeps its connection


class BoardServer:
    """A server of the board's files; threads of its own answer while `serve` waits."""

    def __init__(self, folder: Path, *, host: str, port: int):
        """Bind the address.

        Args:
            folder: of the board.
            host: 127.0.0.1 serves this machine alone.
            port: 0 is any that is free.

        Raises:
            OSError: the port is taken.
        """
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(folder, is_local=host in _LOCAL))
        except OSError as error:
            error.filename = f"{host}:{port} (give another --port)"
            raise
        self._server.daemon_threads = True

    @property
    def address(self) -> str:
        """Return host:port."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def serve(self, seconds: float) -> None:
        """Answer requests for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._server.timeout = left
            self._server.handle_request()

    def __enter__(self) -> "BoardServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the port."""
        self._server.server_close()


def _handler(folder: Path, *, is_local: bool) -> type[BaseHTTPRequestHandler]:
    """Return the class that answers one connection."""

    class Handler(BaseHTTPRequestHandler):
        """Answers GET and HEAD."""

        timeout = _SLOW_S

        def do_GET(self) -> None:
            """Send a file of the board."""
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            """Send the head of that answer."""
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
            if is_local and host not in _LOCAL:  # a page elsewhere whose name leads here (DNS rebinding)
                self.send_error(HTTPStatus.FORBIDDEN)
                return
            name = self.path.partition("?")[0].removeprefix("/") or "board.html"
            path = folder / name
            if not _FILES.fullmatch(name) or path.is_symlink() or not path.is_file():
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            data = path.read_bytes()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", _KINDS[path.suffix])
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-cache")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            if with_body:
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    return Handler
