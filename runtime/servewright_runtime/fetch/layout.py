"""Where things lie in the cache's folder, and the small files beside the models.

    blobs/sha256/<hex>     a whole, hashed model file; appears by rename, never changes
    sources/<key>.json     what a source gave; its mtime says when it was last used
    work/<key>/, .lock     an unfinished fetch of one source, and the lock of who does it
    lock                   held for the moment in which blobs and records change

<key> is the SHA-256 of the source's URI, which may hold a credential and is itself stored nowhere.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from servewright_runtime.fetch.locks import hold

log = logging.getLogger(__name__)

# In a work folder: the fetch can be resumed, and says how.
STATE_NAME = "state.json"


@dataclass(frozen=True, slots=True)
class Record:
    """What a source gave. The blob's `ctime_ns` proves that no one wrote to it since."""

    source: str  # without credentials, for people
    digest: str
    bytes: int
    ctime_ns: int
    etag: str | None = None
    last_modified: str | None = None


class Layout:
    """The paths of a cache, and reading and writing its records."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs" / "sha256"
        self.sources = root / "sources"
        self.work = root / "work"
        self.lock = root / "lock"

    def create(self) -> None:
        """Make the folders, for this user alone. Raises OSError."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self.blobs, self.sources, self.work):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def blob(self, digest: str) -> Path:
        """The file with that digest."""
        return self.blobs / digest.removeprefix("sha256:")

    def record_path(self, uri: str) -> Path:
        """The record of what `uri` gave."""
        return self.sources / f"{key_of(uri)}.json"

    def records(self) -> Iterator[tuple[Path, Record]]:
        """All records that can be read."""
        for path in listed(self.sources):
            if path.suffix == ".json" and (record := read_record(path)):
                yield path, record

    def write_record(self, path: Path, record: Record, now: float) -> None:
        """Write and mark as used `now`, with `lock` held. Raises OSError."""
        write_json(path, asdict(record))
        os.utime(path, (now, now))

    def work_folders(self) -> list[Path]:
        """Folders of unfinished fetches, those of which only the lock is left included."""
        return sorted({path.with_suffix("") for path in listed(self.work)})


@contextmanager
def working(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Be the only one at a work folder; false when someone else is and `wait` is false.

    The lock lies beside the folder, so removing the folder leaves it held, and goes with its
    holder.
    """
    lock = folder.with_suffix(".lock")
    fd = hold(lock, wait=False)
    if fd is None and wait:
        log.info("waiting for another process that fetches the same source")
        fd = hold(lock)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            lock.unlink(missing_ok=True)
            os.close(fd)


def key_of(uri: str) -> str:
    """The file name that stands for a source."""
    return hashlib.sha256(uri.encode()).hexdigest()


def read_record(path: Path) -> Record | None:
    """The record in `path`; None where there is none of this version's form."""
    value = read_json(path)
    try:
        record = Record(**value)
    except TypeError:
        return None
    texts, numbers = (record.source, record.digest), (record.bytes, record.ctime_ns)
    optional = (record.etag, record.last_modified)
    is_sound = (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(number, int) for number in numbers)
        and all(text is None or isinstance(text, str) for text in optional)
    )
    return record if is_sound else None


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; an empty one where there is none or it cannot be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: object) -> None:
    """Replace `path` durably. The caller keeps other writers of it away. Raises OSError."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def listed(folder: Path) -> list[Path]:
    """What is in `folder`, in order; nothing where there is no such folder."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
