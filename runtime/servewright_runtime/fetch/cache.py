"""The cache of fetched models: files named by their SHA-256, and which source gave which.

Who uses a model holds a shared `flock` on it and who removes one needs it exclusively, so no file
goes while a process runs on it, and the kernel ends the claim of a process that was killed. A
crash leaves at worst a model without record or a work folder; age and the bound clear both.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from servewright_runtime.errors import ConfigError
from servewright_runtime.fetch import inventory
from servewright_runtime.fetch.digest import digest_of
from servewright_runtime.fetch.inventory import Entry, Pruned
from servewright_runtime.fetch.layout import (
    STATE_NAME,
    Layout,
    Record,
    key_of,
    read_record,
    sync_folder,
    working,
)
from servewright_runtime.fetch.locks import hold, locked
from servewright_runtime.fetch.settings import bytes_setting
from servewright_runtime.fetch.space import Cures, explained
from servewright_runtime.fetch.uri import redacted

log = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 50 << 30
LOCAL_CURES = Cures()
# An interrupted download is worth resuming for this long.
WORK_KEPT_S = 7 * 24 * 3600.0


@dataclass(slots=True)
class Held:
    """A model in the cache that cannot be removed until `close`, or the end of this process."""

    path: Path
    record: Record
    fd: int

    def close(self) -> None:
        """Give up the claim. May be called again."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Cache:
    """A folder of models that many threads and processes share.

    max_bytes: the bound kept when a model is added; the least recently used go first, one in use
    never, so models in use may exceed it. None: no bound. now: Unix time, seconds.
    """

    def __init__(
        self,
        root: Path,
        max_bytes: int | None = DEFAULT_MAX_BYTES,
        *,
        cures: Cures = LOCAL_CURES,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.root = root
        self.cures = cures
        self.max_bytes = max_bytes
        self._now = now
        self._layout = Layout(root)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Cache:
        """The user's cache: SERVEWRIGHT_CACHE, bounded by SERVEWRIGHT_CACHE_MAX_BYTES."""
        if root := environ.get("SERVEWRIGHT_CACHE"):
            path = Path(root).expanduser().absolute()
        elif os.path.isabs(base := environ.get("XDG_CACHE_HOME", "")):  # else it is to be ignored
            path = Path(base) / "servewright"
        else:
            try:
                path = Path.home() / ".cache" / "servewright"
            except RuntimeError:  # neither HOME nor an entry in the list of users
                raise ConfigError(
                    "This user has no home folder to keep models in; set SERVEWRIGHT_CACHE to a "
                    "folder."
                ) from None
        return cls(path, bytes_setting(environ, "SERVEWRIGHT_CACHE_MAX_BYTES", DEFAULT_MAX_BYTES))

    def find(self, uri: str, digest: str | None) -> Held | None:
        """The model with `digest`, or the one `uri` gave last when no digest is asked for.

        Needs no network, and no right to write. A file whose size or ctime is not what was
        recorded is hashed again, and is none if its bytes have changed. Raises OSError.
        """
        own = read_record(self._layout.record_path(uri))
        wanted = digest or (own.digest if own else None)
        if wanted is None or (held := self._hold_whole(wanted)) is None:
            return None
        size, ctime_ns = held.record.bytes, held.record.ctime_ns
        if own is not None and own.digest == wanted:
            held.record = replace(own, bytes=size, ctime_ns=ctime_ns)
        # Under the sources that gave it alone. A digest vouches for the bytes, not for this source:
        # recorded under it, they would be its model also in a start without the digest.
        with suppress(OSError):  # a cache on a read-only disk serves as well
            for path, known in self._layout.records():
                if known.digest != wanted:
                    continue
                if (fresh := replace(known, bytes=size, ctime_ns=ctime_ns)) != known:
                    with locked(self._layout.lock):
                        self._layout.write_record(path, fresh, self._now())
                else:
                    os.utime(path, (self._now(), self._now()))
        return held

    @contextmanager
    def working(self, uri: str) -> Iterator[Path]:
        """The private folder for fetching `uri`, which no one else does meanwhile. Waits.

        Kept for the next one if STATE_NAME is in it at the end, else removed. Raises OSError.
        """
        self._layout.create()
        inventory.sweep(self._layout, written_before=self._now() - WORK_KEPT_S)
        folder = self._layout.work / key_of(uri)
        with working(folder, wait=True):
            if not (folder / STATE_NAME).exists():
                # Of one that was killed while this one waited for the lock.
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(exist_ok=True, mode=0o700)
            try:
                yield folder
            finally:
                if not (folder / STATE_NAME).exists():
                    shutil.rmtree(folder, ignore_errors=True)

    def add(
        self,
        uri: str,
        file: Path,
        digest: str,
        *,
        etag: str | None = None,
        last_modified: str | None = None,
    ) -> Held:
        """Take `file`, whole, on disk and with that digest, out of the work folder of `uri`.

        The bound is kept by removing others. Raises OSError.
        """
        fd = hold(file, shared=True, create=False)
        assert fd is not None
        try:
            with locked(self._layout.lock):
                if there := self._hold_whole(digest):
                    # The same bytes came from another source and may be in use: keep those.
                    os.close(fd)
                    fd = there.fd
                    file.unlink()
                else:
                    os.replace(file, self._layout.blob(digest))
                    sync_folder(self._layout.blobs)
                status = os.fstat(fd)
                record = Record(
                    redacted(uri), digest, status.st_size, status.st_ctime_ns, etag, last_modified
                )
                path = self._layout.record_path(uri)
                self._layout.write_record(path, record, self._now())
                if self.max_bytes is not None:
                    inventory.evict(self._layout, keep_bytes=self.max_bytes)
        except BaseException:
            os.close(fd)
            raise
        return Held(self._layout.blob(digest), record, fd)

    def entries(self) -> list[Entry]:
        """All models and unfinished downloads, the most recently used first.

        A model that several sources gave has an entry for each.
        """
        with explained("The list of models", self.root, self.cures):
            return inventory.entries(self._layout)

    def prune(self, *, keep_bytes: int = 0, unused_for_s: float | None = None) -> Pruned:
        """Remove the least recently used until at most `keep_bytes` are left; 0 is all.

        unused_for_s: only what was not used for that long. What is in use stays always. Raises
        StartError where the folder may not be written.
        """
        if not self.root.exists():
            return Pruned([], 0, 0, 0)
        used_before = None if unused_for_s is None else self._now() - unused_for_s
        with explained("The list of models", self.root, self.cures), locked(self._layout.lock):
            return inventory.evict(self._layout, keep_bytes=keep_bytes, used_before=used_before)

    def _hold_whole(self, digest: str) -> Held | None:
        """Claim the model, if it is there and its bytes are what its name says."""
        path = self._layout.blob(digest)
        try:
            fd = hold(path, shared=True, create=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        assert fd is not None
        try:
            status = os.fstat(fd)
            record = Record("", digest, status.st_size, status.st_ctime_ns)
            if any(
                (known.digest, known.bytes, known.ctime_ns)
                == (digest, record.bytes, record.ctime_ns)
                for _, known in self._layout.records()
            ):
                return Held(path, record, fd)
            with os.fdopen(fd, "rb", closefd=False) as file:
                came = digest_of(file)
            if came == digest:
                return Held(path, record, fd)
            log.warning("cached model is damaged", extra={"digest": digest, "came": came})
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None
