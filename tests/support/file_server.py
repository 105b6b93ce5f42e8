"""An HTTP(S) server with one file and any misbehaviour, a script saying which comes when."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

import trustme

from support.threaded import JoinedServer, Threaded

Behaviour = Callable[["Exchange"], None]


@dataclass(frozen=True)
class Seen:
    """A request as it came in."""

    path: str
    headers: dict[str, str]  # names in lower case

    @property
    def first_byte(self) -> int:
        """Where the wanted range starts."""
        return int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))


@dataclass
class FileServer(Threaded):
    """Serves `content` at every path, rightly, but for the behaviours in `script`, in order."""

    content: bytes
    authority: trustme.CA | None = None
    etag: str | None = '"v1"'
    last_modified: str | None = None
    script: deque[Behaviour] = field(default_factory=deque)
    seen: list[Seen] = field(default_factory=list)

    def make_server(self) -> _Server:
        return _Server(self)

    @property
    def host(self) -> str:
        """Name and port."""
        return f"localhost:{self.port}"

    @property
    def url(self) -> str:
        """Of the file."""
        return f"{'https' if self.authority else 'http'}://{self.host}/model.gguf"

    @property
    def digest(self) -> str:
        """Of the file as it is now."""
        return "sha256:" + hashlib.sha256(self.content).hexdigest()


class Exchange(BaseHTTPRequestHandler):
    """One request and its answer."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        file = self.server.file
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.request_seen = Seen(self.path, headers)
        file.seen.append(self.request_seen)
        self.close_connection = True
        behave = file.script.popleft() if file.script else serve_file
        behave(self)

    def head(self, status: int, **headers: str | int | None) -> None:
        """Send status and headers; `_` in names stands for `-`, None leaves one out."""
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def setup(self) -> None:
        if isinstance(self.request, ssl.SSLSocket):
            self.request.do_handshake()
        super().setup()

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


class _Server(JoinedServer):
    def __init__(self, file: FileServer) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.file = file
        if file.authority is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            file.authority.issue_cert("localhost").configure_cert(context)
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )


def serve_file(exchange: Exchange) -> None:
    """What a good server does, ranges and conditions included."""
    _serve(exchange, honour_range=True, limit=None)


def ignoring_ranges(exchange: Exchange) -> None:
    """Answer 200 with everything, whatever was asked."""
    _serve(exchange, honour_range=False, limit=None)


def cut_after(count: int) -> Behaviour:
    """Announce all and close the connection after `count` bytes of it."""
    return lambda exchange: _serve(exchange, honour_range=True, limit=count)


def answering(status: int, **headers: str | int | None) -> Behaviour:
    """An answer without body."""
    return lambda exchange: exchange.head(status, Content_Length=0, **headers)


def redirecting(location: str) -> Behaviour:
    """302 to `location`."""
    return answering(302, Location=location)


def with_body(body: bytes, status: int = 200, **headers: str | int | None) -> Behaviour:
    """Exactly these headers, then the body, then the end of the connection."""

    def behave(exchange: Exchange) -> None:
        exchange.head(status, **headers)
        exchange.wfile.write(body)

    return behave


def chunked(body: bytes) -> Behaviour:
    """The body in chunks, without a length."""

    def behave(exchange: Exchange) -> None:
        exchange.head(200, Transfer_Encoding="chunked")
        for at in range(0, len(body), 1000):
            part = body[at : at + 1000]
            exchange.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        exchange.wfile.write(b"0\r\n\r\n")

    return behave


def closing_at_once(exchange: Exchange) -> None:
    """No answer at all."""
    exchange.connection.shutdown(socket.SHUT_RDWR)


def _serve(exchange: Exchange, *, honour_range: bool, limit: int | None) -> None:
    file, asked = exchange.server.file, exchange.request_seen
    headers = asked.headers
    tags: dict[str, str | int | None] = {"ETag": file.etag, "Last_Modified": file.last_modified}
    if (file.etag and headers.get("if-none-match") == file.etag) or (
        file.last_modified and headers.get("if-modified-since") == file.last_modified
    ):
        exchange.head(304, **tags)
        return
    body, status = file.content, 200
    condition = headers.get("if-range")
    if (
        honour_range
        and asked.first_byte
        and (condition is None or condition in (file.etag, file.last_modified))
    ):
        if asked.first_byte >= len(body):
            exchange.head(416, Content_Range=f"bytes */{len(body)}", Content_Length=0)
            return
        tags["Content_Range"] = f"bytes {asked.first_byte}-{len(body) - 1}/{len(body)}"
        body, status = body[asked.first_byte :], 206
    exchange.head(status, Content_Length=len(body), **tags)
    exchange.wfile.write(body[:limit])
