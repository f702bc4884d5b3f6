"""An HTTP proxy on loopback that fails as object stores do: 503 for a while, or a connection that breaks half-way."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit


@dataclass
class Faults:
    """What the next requests meet: `unavailable` of them a 503, then `broken` downloads half of their body."""

    url: str = ""
    unavailable: int = 0
    broken: int = 0
    failed: int = 0


@contextmanager
def flaky(endpoint: str) -> Iterator[Faults]:
    """A proxy before `endpoint`, at `url`."""
    faults = Faults()
    target = urlsplit(endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if faults.unavailable > 0:
                faults.unavailable -= 1
                faults.failed += 1
                self.answer(503, [], b"<Error><Code>ServiceUnavailable</Code></Error>")
                return
            upstream = http.client.HTTPConnection(target)
            upstream.request(self.command, self.path, body, dict(self.headers))
            response = upstream.getresponse()
            data = response.read()
            self.answer(response.status, response.getheaders(), data)

        def answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
            self.send_response_only(status)
            length = next((value for name, value in headers if name.lower() == "content-length"), str(len(data)))
            for name, value in headers:
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command == "GET" and status in (200, 206) and len(data) > 100 and faults.broken > 0:
                faults.broken -= 1
                faults.failed += 1
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
                self.connection.close()
            elif self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    faults.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield faults
    finally:
        server.shutdown()
        server.server_close()
