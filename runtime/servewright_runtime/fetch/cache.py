"""The cache of fetched models: files named by their SHA-256, and which source gave which.

    blobs/sha256/<hex>     a whole, hashed model file; appears by rename, never changes
    sources/<key>.json     what a source gave; its mtime says when it was last used
    work/<key>/, .lock     an unfinished fetch of one source, and the lock of who does it
    lock                   held for the moment in which blobs and records change

<key> is the SHA-256 of the source's URI, which may hold a credential and is stored nowhere. Who
uses a blob holds a shared `flock` on it and who removes one needs it exclusively, so no file goes
while a process runs on it, and the kernel ends the claim of one that was killed. A crash leaves at
worst a blob without record or a work folder, and both are cleared by age or bound.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from servewright_runtime.fetch.digest import digest_of
from servewright_runtime.fetch.locks import hold, is_held, locked
from servewright_runtime.fetch.records import (
    STATE_NAME,
    Record,
    key_of,
    listed,
    read_json,
    sync_folder,
    tree,
    write_json,
)
from servewright_runtime.fetch.settings import bytes_setting
from servewright_runtime.fetch.uri import redacted

log = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 50 << 30
# An interrupted download is worth resuming for this long.
WORK_KEPT_S = 7 * 24 * 3600.0


@dataclass(slots=True)
class Held:
    """A blob that cannot be removed until `close`, or the end of this process."""

    path: Path
    record: Record
    fd: int

    def close(self) -> None:
        """Give up the claim. May be called again."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of `servewright cache`: a model with a source it came from, or an unfinished one."""

    source: str | None  # None: the record is lost, the file is whole
    digest: str | None  # None: an unfinished download
    bytes: int
    last_used: float  # Unix time, seconds
    in_use: bool


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `Cache.prune` did."""

    removed: list[Entry]
    freed_bytes: int
    kept_bytes: int
    in_use_bytes: int  # the part of kept_bytes that running processes use


@dataclass(slots=True)
class _Item:
    """A blob with all its entries, or a work folder: what is removed as one."""

    path: Path
    bytes: int
    last_used: float
    entries: list[Entry] = field(default_factory=list)
    records: list[Path] = field(default_factory=list)


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
        now: Callable[[], float] = time.time,
    ) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._now = now
        self._blobs = root / "blobs" / "sha256"
        self._sources = root / "sources"
        self._work = root / "work"
        self._lock = root / "lock"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Cache:
        """The user's cache: SERVEWRIGHT_CACHE, bounded by SERVEWRIGHT_CACHE_MAX_BYTES."""
        if root := environ.get("SERVEWRIGHT_CACHE"):
            path = Path(root).expanduser().absolute()
        elif base := environ.get("XDG_CACHE_HOME"):
            path = Path(base) / "servewright"
        else:
            path = Path.home() / ".cache" / "servewright"
        return cls(path, bytes_setting(environ, "SERVEWRIGHT_CACHE_MAX_BYTES", DEFAULT_MAX_BYTES))

    def find(self, uri: str, digest: str | None) -> Held | None:
        """The cached file with `digest`, or the one `uri` gave last when no digest is asked for.

        Needs no network, and no right to write. A file whose size or ctime is not what was
        recorded is hashed again, and is none if it has changed.
        """
        key = key_of(uri)
        own = self._read(key)
        wanted = digest or (own.digest if own else None)
        if wanted is None:
            return None
        held = self._hold_whole(wanted, self._records_of(wanted))
        if held is None:
            return None
        if own is None or own.digest != wanted:
            own = Record(redacted(uri), wanted, 0, 0)
        # Recorded under this source too, for the list and for a start without the digest.
        fresh = replace(own, bytes=held.record.bytes, ctime_ns=held.record.ctime_ns)
        if fresh != own:
            with suppress(OSError), locked(self._lock):
                self._write(key, fresh)
        held.record = fresh
        with suppress(OSError):
            os.utime(self._sources / f"{key}.json", (self._now(), self._now()))
        return held

    @contextmanager
    def working(self, uri: str) -> Iterator[Path]:
        """The private folder for fetching `uri`, which no one else does meanwhile. Waits."""
        for folder in (self._blobs, self._sources, self._work):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sweep()
        folder = self._work / key_of(uri)
        with self._working(folder, wait=True):
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

        The bound is kept by removing others first. Raises OSError.
        """
        fd = hold(file, shared=True, create=False)
        assert fd is not None
        try:
            with locked(self._lock):
                there = self._hold_whole(digest, self._records_of(digest))
                if there is not None:  # the same bytes from another source, perhaps in use
                    os.close(fd)
                    fd = there.fd
                    file.unlink()
                else:
                    if self.max_bytes is not None:
                        self._evict(keep_bytes=self.max_bytes - os.fstat(fd).st_size)
                    os.replace(file, self._blob(digest))
                    sync_folder(self._blobs)
                stat = os.fstat(fd)
                record = Record(
                    redacted(uri), digest, stat.st_size, stat.st_ctime_ns, etag, last_modified
                )
                self._write(key_of(uri), record)
                os.utime(self._sources / f"{key_of(uri)}.json", (self._now(), self._now()))
        except BaseException:
            os.close(fd)
            raise
        return Held(self._blob(digest), record, fd)

    def entries(self) -> list[Entry]:
        """All models and unfinished downloads, the most recently used first."""
        found = [entry for item in self._items() for entry in item.entries]
        return sorted(found, key=lambda e: (-e.last_used, e.source or ""))

    def prune(self, *, keep_bytes: int = 0, unused_for_s: float | None = None) -> Pruned:
        """Remove the least recently used until at most `keep_bytes` are left; 0 is all.

        unused_for_s: only what was not used for that long. What is in use stays always.
        """
        if not self.root.exists():
            return Pruned([], 0, 0, 0)
        with locked(self._lock):
            return self._evict(keep_bytes=keep_bytes, unused_for_s=unused_for_s)

    def _evict(self, *, keep_bytes: int, unused_for_s: float | None = None) -> Pruned:
        items = sorted(self._items(), key=lambda item: item.last_used)
        left = sum(item.bytes for item in items)
        removed: list[Entry] = []
        freed = 0
        for item in items:
            if left <= keep_bytes:
                break
            if unused_for_s is not None and self._now() - item.last_used < unused_for_s:
                break
            if self._remove(item):
                removed += item.entries
                freed += item.bytes
                left -= item.bytes
        used = sum(item.bytes for item in items if any(e.in_use for e in item.entries))
        return Pruned(removed, freed, left, used)

    def _remove(self, item: _Item) -> bool:
        if item.path.is_dir():
            with self._working(item.path, wait=False) as is_ours:
                if is_ours:
                    shutil.rmtree(item.path, ignore_errors=True)
                return is_ours
        try:
            fd = hold(item.path, wait=False, create=False)
        except FileNotFoundError:
            return False
        if fd is None:
            return False
        try:
            # Records first: a crash here leaves a nameless blob, not a name without one.
            for record in item.records:
                record.unlink(missing_ok=True)
            item.path.unlink()
        finally:
            os.close(fd)
        return True

    def _items(self) -> Iterator[_Item]:
        records: dict[str, list[tuple[Path, Record]]] = {}
        for path in self._record_paths():
            if record := self._read(path.stem):
                records.setdefault(record.digest, []).append((path, record))
        for blob in listed(self._blobs):
            with suppress(FileNotFoundError):
                stat, in_use = blob.stat(), is_held(blob)
                digest = f"sha256:{blob.name}"
                item = _Item(blob, stat.st_size, stat.st_mtime)
                named = [(p, r, p.stat().st_mtime) for p, r in records.get(digest, [])]
                for path, record, used in named:
                    item.records.append(path)
                    item.entries.append(Entry(record.source, digest, item.bytes, used, in_use))
                if named:
                    item.last_used = max(used for _, _, used in named)
                else:
                    item.entries.append(Entry(None, digest, item.bytes, item.last_used, in_use))
                yield item
        for folder in listed(self._work):
            if folder.is_dir():
                sizes, used = tree(folder)
                source = read_json(folder / STATE_NAME).get("source")
                in_use = is_held(lock_of(folder))
                yield _Item(folder, sizes, used, [Entry(source, None, sizes, used, in_use)])

    def _hold_whole(self, digest: str, known: list[Record]) -> Held | None:
        """Claim the blob, if it is there and its bytes are what its name says."""
        path = self._blob(digest)
        try:
            fd = hold(path, shared=True, create=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        assert fd is not None
        try:
            stat = os.fstat(fd)
            for record in known:
                if (record.bytes, record.ctime_ns) == (stat.st_size, stat.st_ctime_ns):
                    return Held(path, record, fd)
            with closing(os.fdopen(os.dup(fd), "rb")) as file:
                came = digest_of(file)
            if came == digest:
                return Held(path, Record("", digest, stat.st_size, stat.st_ctime_ns), fd)
            log.warning("cached model is damaged", extra={"digest": digest, "came": came})
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    @contextmanager
    def _working(self, folder: Path, *, wait: bool) -> Iterator[bool]:
        fd = hold(lock_of(folder), wait=wait)
        try:
            yield fd is not None
        finally:
            if fd is not None:
                lock_of(folder).unlink(missing_ok=True)
                os.close(fd)

    def _sweep(self) -> None:
        """Remove what fetches left that were killed and cannot be resumed."""
        for folder in listed(self._work):
            if not folder.is_dir():
                continue
            resumable = (folder / STATE_NAME).exists()
            if resumable and self._now() - tree(folder)[1] < WORK_KEPT_S:
                continue
            with self._working(folder, wait=False) as is_ours:
                if is_ours:
                    shutil.rmtree(folder, ignore_errors=True)

    def _blob(self, digest: str) -> Path:
        return self._blobs / digest.removeprefix("sha256:")

    def _record_paths(self) -> list[Path]:
        return [path for path in listed(self._sources) if path.suffix == ".json"]

    def _records_of(self, digest: str) -> list[Record]:
        records = (self._read(path.stem) for path in self._record_paths())
        return [record for record in records if record and record.digest == digest]

    def _read(self, key: str) -> Record | None:
        try:
            return Record(**read_json(self._sources / f"{key}.json"))
        except TypeError:  # of another version, or damaged: as good as none
            return None

    def _write(self, key: str, record: Record) -> None:
        """Under `_lock`, so that the temporary name is ours."""
        write_json(self._sources / f"{key}.json", asdict(record))


def lock_of(folder: Path) -> Path:
    """The lock of a work folder, beside it, so that removing the folder leaves it held."""
    return folder.with_name(f"{folder.name}.lock")
