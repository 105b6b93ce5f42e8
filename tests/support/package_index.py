"""A package index on loopback (PEP 503) with wheels that are made for it."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from support.threaded import JoinedServer, Threaded


def make_wheel(
    files: dict[str, bytes],
    name: str = "tiny_model",
    version: str = "1.0",
    requires: str | None = None,
) -> bytes:
    """A pure wheel, deflated, with `files` beside its metadata."""
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    if requires is not None:
        metadata += f"Requires-Dist: {requires}\n"
    info = f"{name}-{version}.dist-info"
    members = dict(files)
    members[f"{info}/METADATA"] = metadata.encode()
    members[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in members).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in members.items():
            archive.writestr(path, content)
    return buffer.getvalue()


@dataclass
class PackageIndex(Threaded):
    """Serves `wheels` by file name, with the hash of each unless `hashes` states another.

    release: wheels are served only once it is set; it is from the start, unless cleared.
    started: a wheel was asked for.
    """

    wheels: dict[str, bytes] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)

    def make_server(self) -> _Server:
        self.release.set()
        return _Server(self)

    def stop(self) -> None:
        self.release.set()
        super().stop()

    @property
    def url(self) -> str:
        """What PIP_INDEX_URL takes."""
        return f"http://127.0.0.1:{self.port}/simple"

    @property
    def downloads(self) -> list[str]:
        """Wheels that were asked for."""
        return [path for path in self.seen if path.endswith(".whl")]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        index = self.server.index
        index.seen.append(self.path)
        name = self.path.strip("/").rpartition("/")[2]
        if name in index.wheels:
            index.started.set()
            body = index.wheels[name]
            # The first half comes at once, so that there is a half-written file to find.
            self._head(200, "application/octet-stream", len(body))
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            index.release.wait(60)
            self.wfile.write(body[len(body) // 2 :])
            return
        wheels = {
            wheel: index.hashes.get(wheel, hashlib.sha256(body).hexdigest())
            for wheel, body in index.wheels.items()
            if wheel.partition("-")[0].replace("_", "-") == name
        }
        links = "".join(
            f'<a href="/files/{wheel}#sha256={digest}">{wheel}</a>'
            for wheel, digest in wheels.items()
        )
        page = f"<!DOCTYPE html><html><body>{links}</body></html>".encode()
        self._head(200 if wheels else 404, "text/html", len(page))
        self.wfile.write(page)

    def _head(self, status: int, kind: str, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


class _Server(JoinedServer):
    def __init__(self, index: PackageIndex) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.index = index
