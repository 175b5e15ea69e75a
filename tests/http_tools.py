"""A local HTTP server that behaves badly on demand, for tests of downloads."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gan_uad import http as download

BODY = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(BODY).hexdigest()


class Server:
    """A local HTTP server that answers each request by the next of `answers` (else honestly), and records the requests.

    It sends `BODY` at every address, or only `files` (by name) where there are any.
    """

    def __init__(self) -> None:
        self.ranges: list[str | None] = []
        self.asked: list[str] = []
        self.files: dict[str, bytes] = {}
        self.answers: list[Callable[[Any, int], None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                outer.ranges.append(asked)
                name = self.path.partition("?")[0].removeprefix("/")
                outer.asked.append(name)
                self.body = outer.files.get(name) if outer.files else BODY
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                answer = outer.answers.pop(0) if outer.answers else honest
                answer(self, start)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *args: None  # type: ignore[method-assign]  # connections that were cut on purpose
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"{self.root}/net-{DIGEST[:8]}.pth"

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"


def respond(handler: Any, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    for key, value in headers.items():
        handler.send_header(key.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def honest(handler: Any, start: int) -> None:
    """What an honest server does, ranges included."""
    if handler.body is None:
        return respond(handler, 404, b"")
    if start and start >= len(handler.body):
        return respond(handler, 416, b"")
    if start:
        return respond(
            handler,
            206,
            handler.body[start:],
            Content_Range=f"bytes {start}-{len(handler.body) - 1}/{len(handler.body)}",
        )
    respond(handler, 200, handler.body)


def cut(handler: Any, start: int) -> None:
    """300,000 bytes, then the connection drops."""
    status = {"Content_Range": f"bytes {start}-{len(handler.body) - 1}/{len(handler.body)}"} if start else {}
    respond(handler, 206 if start else 200, handler.body[start : start + 300_000], len(handler.body) - start, **status)
    handler.wfile.flush()
    handler.connection.close()


def no_ranges(handler: Any, start: int) -> None:
    respond(handler, 200, handler.body)


def wrong_range(handler: Any, start: int) -> None:
    respond(handler, 206, handler.body, Content_Range=f"bytes 0-{len(handler.body) - 1}/{len(handler.body)}")


def too_long(handler: Any, start: int) -> None:
    """Announces more bytes than it sends."""
    if start:
        return respond(handler, 416, b"")
    respond(handler, 200, handler.body, len(handler.body) + 1000)
    handler.wfile.flush()
    handler.connection.close()


def too_short(handler: Any, start: int) -> None:
    respond(handler, 200, handler.body, len(handler.body) - 1000)


def other(handler: Any, start: int) -> None:
    respond(handler, 200, b"<html>log in first</html>")


def status(code: int) -> Callable[[Any, int], None]:
    return lambda handler, start: respond(handler, code, b"")


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server for one test, without waiting between attempts."""
    monkeypatch.setattr(download, "WAIT", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()
