"""One HTTP request as it is being answered: what the access log and the headers need of it."""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from servewright_runtime.api.access import ANONYMOUS, Caller
from servewright_runtime.engine.requests import Timing, Usage

access_log = logging.getLogger("servewright.access")

# Key of the scope under which the endpoints find their Call.
SCOPE_KEY = "servewright.call"

MAX_REQUEST_ID = 128


class Disconnected(Exception):
    """The client went away; nobody is left to answer."""


@dataclass(slots=True, eq=False)
class Call:
    """Facts of one request, filled in on its way."""

    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    request_id: str
    started: float  # monotonic seconds
    caller: Caller = ANONYMOUS
    route: str = ""  # template of the path, "" while unrouted
    model: str = ""  # served name, "" while unknown
    revision: str = ""
    key_name: str | None = None
    status: int | None = None
    body_read: bool = False
    stalled: bool = False  # the client stopped sending: close without waiting for it
    disconnected: bool = False
    streamed: bool = False
    choices: int = 0
    usage: Usage | None = None
    timing: Timing | None = None
    error: str | None = None  # code or type of the error answered

    @classmethod
    def of(cls, scope: Scope) -> Call:
        """The call of a new request; also puts it into the scope."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        call = cls(scope["method"], scope["path"], headers, "", time.monotonic())
        call.request_id = _request_id(call.header(b"x-request-id"))
        scope[SCOPE_KEY] = call
        return call

    def header(self, name: bytes) -> bytes | None:
        """The first header of that name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    @property
    def content_length(self) -> int | None:
        """Bytes of the body, if its length was said. The HTTP parser has checked the number."""
        value = self.header(b"content-length")
        return int(value) if value is not None and value.isdigit() else None

    @property
    def wants_timing(self) -> bool:
        """Whether the answer shall say where its time went."""
        return self.header(b"x-servewright-timing") == b"1"

    def log(self) -> None:
        """Write the access log's line: no header, no prompt, no answer."""
        extra: dict[str, Any] = {
            "request_id": self.request_id,
            "method": self.method,
            "path": self.route or self.path[:200],
            "model": self.model,
            "status": self.status,
            "seconds": round(time.monotonic() - self.started, 6),
        }
        if self.key_name is not None:
            extra["key"] = self.key_name
        if self.error is not None:
            extra["error"] = self.error
        if self.disconnected:
            extra["disconnected"] = True
        if self.usage is not None:
            extra["stream"] = self.streamed
            extra["choices"] = self.choices
            extra["prompt_tokens"] = self.usage.prompt_tokens
            extra["completion_tokens"] = self.usage.completion_tokens
            extra["cached_tokens"] = self.usage.cached_tokens
        if self.timing is not None:
            extra["queue_s"] = round(self.timing.queue_s, 6)
            extra["prefill_s"] = round(self.timing.prefill_s, 6)
            extra["decode_s"] = round(self.timing.decode_s, 6)
        access_log.info("request", extra=extra)


def _request_id(given: bytes | None) -> str:
    """The client's id if it is short and printable, else a new one."""
    if given and len(given) <= MAX_REQUEST_ID and all(0x21 <= byte <= 0x7E for byte in given):
        return given.decode("ascii")
    return uuid.uuid4().hex
