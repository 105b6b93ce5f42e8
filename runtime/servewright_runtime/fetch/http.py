"""Downloads over HTTP that survive cut connections, busy servers and their own end.

A download goes on where it stopped only if the server vouches by ETag or date that the file is
the same, or a digest will tell. Credentials in a URL are sent to its own host alone, and appear
in no message.
"""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from servewright_runtime.errors import StartError
from servewright_runtime.fetch.answer import Wanted, begin, refuse
from servewright_runtime.fetch.client import answer, failure_of, open_client
from servewright_runtime.fetch.digest import Progress
from servewright_runtime.fetch.partial import Partial
from servewright_runtime.fetch.retry import HttpPolicy, Retry
from servewright_runtime.fetch.space import FULL, NoSpace, too_large
from servewright_runtime.fetch.uri import HttpSource

log = logging.getLogger(__name__)

# Asked before a model in the cache is used: the network may be down, and the model is there.
_REVALIDATE_CONNECT_S = 5.0


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A whole file on disk, and what to ask the server next time."""

    path: Path
    digest: str
    etag: str | None
    last_modified: str | None


def download(
    source: HttpSource, folder: Path, wanted: Wanted, progress: Progress, policy: HttpPolicy
) -> Downloaded | None:
    """Download `source` into its work folder; None if `wanted.cached` is current.

    The digest is computed, not compared. Raises ConfigError where the source is wrong, StartError
    where network or disk is in the way, OSError.
    """
    if wanted.cached is not None:
        connect_s = min(policy.connect_timeout_s, _REVALIDATE_CONNECT_S)
        policy = replace(policy, connect_timeout_s=connect_s)
    with closing(Partial(folder, source.shown)) as partial, open_client(source, policy) as http:
        this = _Download(source, partial, wanted, progress, policy, http)
        try:
            return this.run()
        except OSError as error:
            if error.errno not in FULL:
                raise
            # Room for everyone else on this disk is worth more than the part of one file.
            needed = None if partial.total is None else partial.total - partial.size
            partial.discard()
            raise NoSpace(needed) from error


@dataclass(frozen=True, slots=True)
class _Download:
    source: HttpSource
    partial: Partial
    wanted: Wanted
    progress: Progress
    policy: HttpPolicy
    http: httpx.Client

    def run(self) -> Downloaded | None:
        partial = self.partial
        for _ in range(2):
            if not partial.is_whole and not self._until_whole():
                return None
            if not partial.is_resumed or self.wanted.digest in (None, partial.digest):
                break
            # Its parts may be of two files; only what came in one piece is the server's fault.
            partial.discard()
        etag, last_modified = partial.etag, partial.last_modified
        return Downloaded(partial.path, partial.finish(), etag, last_modified)

    def _until_whole(self) -> bool:
        """Try until the file is whole; false if the cached one is current."""
        partial, failures = self.partial, 0
        while True:
            before = partial.size
            try:
                return self._attempt()
            except Retry as error:
                failure = error
            except httpx.TransportError as error:
                failure = failure_of(self.source, error)
            if partial.size - before >= self.policy.progress_bytes:
                failures = 0
            failures += 1
            self._wait(failures, failure)

    def _wait(self, failures: int, failure: Retry) -> None:
        """Sleep before the next attempt. Raises StartError when there is none."""
        shown, policy, size = self.source.shown, self.policy, self.partial.size
        # With a model at hand, a server that cannot be reached is not waited for.
        attempts = policy.attempts if self.wanted.cached is None or size else 1
        asked_s = failure.retry_after_s or 0.0
        if failures >= attempts or asked_s > policy.max_retry_after_s:
            asked = f" and asks to come back in {asked_s:.0f} s" if asked_s else ""
            raise StartError(
                f"{shown} was not downloaded: {failure}{asked} (attempt {failures} of {attempts}); "
                f"check the network and HTTPS_PROXY and start again, {size:,} bytes are kept.",
                reason="NetworkFailed",
            )
        wait_s = policy.wait_s(failures, failure.retry_after_s)
        log.info(
            "download interrupted",
            extra={
                "source": shown,
                "why": str(failure),
                "done_bytes": size,
                "retry_in_s": round(wait_s, 1),
            },
        )
        policy.sleep(wait_s)

    def _attempt(self) -> bool:
        """One request and its body, appended to what is there; false on 304."""
        partial, wanted = self.partial, self.wanted
        if partial.size and partial.validator is None and wanted.digest is None:
            partial.discard()  # nothing would tell that the rest is of the same file
        headers = {}
        if partial.size:
            headers["Range"] = f"bytes={partial.size}-"
            if partial.validator is not None:
                headers["If-Range"] = partial.validator
        if cached := wanted.cached:
            if cached.etag is not None:
                headers["If-None-Match"] = cached.etag
            elif cached.last_modified is not None:
                headers["If-Modified-Since"] = cached.last_modified
        with closing(answer(self.http, self.source, headers, self.policy)) as response:
            if response.status_code == httpx.codes.NOT_MODIFIED and cached is not None:
                return False
            refuse(self.source, response, partial, self.policy)
            begin(self.source, response, partial, wanted)
            self._receive(response)
        return True

    def _receive(self, response: httpx.Response) -> None:
        partial, max_bytes = self.partial, self.wanted.max_bytes
        self.progress(partial.size, partial.total)
        window_start, window_size = self.policy.monotonic(), partial.size
        for chunk in response.iter_raw():
            partial.write(chunk)
            if partial.size > max_bytes:
                partial.discard()
                raise too_large(self.source.shown, None, max_bytes)
            self.progress(partial.size, partial.total)
            now = self.policy.monotonic()
            if now - window_start >= self.policy.stall_s:
                if partial.size - window_size < self.policy.stall_bytes:
                    raise Retry(
                        f"only {partial.size - window_size:,} bytes came in "
                        f"{now - window_start:.0f} s"
                    )
                window_start, window_size = now, partial.size
        if partial.total is not None and partial.size != partial.total:
            came = f"{partial.size:,} bytes came where {partial.total:,} were announced"
            if partial.size > partial.total:
                partial.discard()
            raise Retry(came)
