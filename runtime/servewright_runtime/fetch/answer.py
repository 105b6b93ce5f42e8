"""What the head of a server's answer means for a download, before its body is read."""

from __future__ import annotations

import re
from dataclasses import dataclass

import httpx

from servewright_runtime.errors import ConfigError, StartError
from servewright_runtime.fetch.layout import Record
from servewright_runtime.fetch.partial import Partial
from servewright_runtime.fetch.retry import HttpPolicy, Retry
from servewright_runtime.fetch.space import require_space, too_large
from servewright_runtime.fetch.uri import HttpSource

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a download must meet."""

    digest: str | None
    max_bytes: int
    cached: Record | None  # not downloaded again while the server says that it is current


def refuse(
    source: HttpSource, response: httpx.Response, partial: Partial, policy: HttpPolicy
) -> None:
    """Raise what an answer without bytes of the model means: Retry, ConfigError or StartError."""
    status = response.status_code
    said = f"{status} {response.reason_phrase}".strip()
    if status == httpx.codes.OK or (status == httpx.codes.PARTIAL_CONTENT and partial.size):
        return
    if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and partial.size:
        partial.discard()
        raise Retry("the server has no more of it than came already")
    if status in _RETRIED:
        retry_after_s = policy.parse_retry_after(response.headers.get("retry-after"))
        raise Retry(f"the server answers {said}", retry_after_s=retry_after_s)
    if status in (httpx.codes.NOT_FOUND, httpx.codes.GONE):
        raise ConfigError(
            f"{source.shown} does not exist: the server answers {said}; correct model.source."
        )
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise ConfigError(
            f"{source.shown} may not be read: the server answers {said}; use a source that needs "
            "no login or whose URL still holds, or on a cluster a right model.credentialsSecret."
        )
    if status == httpx.codes.PROXY_AUTHENTICATION_REQUIRED:
        raise StartError(
            f"{source.shown} was not downloaded: the proxy asks for a login ({said}); put it into "
            "HTTPS_PROXY.",
            reason="NetworkFailed",
        )
    kind = ConfigError if response.is_client_error else StartError
    raise kind(
        f"{source.shown} was not downloaded: the server answers {said}, but 200 was expected; "
        "correct model.source or the server."
    )


def begin(
    source: HttpSource,
    response: httpx.Response,
    partial: Partial,
    wanted: Wanted,
) -> None:
    """Bring `partial` to where the body of `response` goes on.

    Raises Retry where it goes on elsewhere, ConfigError and StartError where it cannot be taken.
    """
    headers = response.headers
    if (encoding := headers.get("content-encoding", "identity").lower()) != "identity":
        raise ConfigError(
            f"{source.shown} comes compressed ({encoding[:20]}) although plain bytes were asked "
            "for, so neither size nor digest could be checked; mend the server or name another."
        )
    if response.status_code == httpx.codes.PARTIAL_CONTENT:
        match = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        total = int(match[2]) if match else None
        is_same = partial.etag is None or headers.get("etag", partial.etag) == partial.etag
        if not match or int(match[1]) != partial.size or partial.total not in (None, total):
            is_same = False
        if not is_same:
            partial.discard()
            raise Retry("the server went on with another part or file than it was asked for")
        partial.total, partial.is_resumed = total, True
    else:
        length = headers.get("content-length", "")
        total = int(length) if length.isascii() and length.isdecimal() else None
        is_framed = total is not None or "chunked" in headers.get("transfer-encoding", "").lower()
        if not is_framed and wanted.digest is None:
            raise ConfigError(
                f"{source.shown}: the server says nowhere how long the file is, so a cut one "
                "would go unseen; give model.digest."
            )
        partial.restart(
            total=total, etag=headers.get("etag"), last_modified=headers.get("last-modified")
        )
    if total is not None and total > wanted.max_bytes:
        partial.discard()
        raise too_large(source.shown, total, wanted.max_bytes)
    if total is not None:
        require_space(partial.path.parent, total - partial.size)
