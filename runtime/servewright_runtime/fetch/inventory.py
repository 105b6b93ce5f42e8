"""What a cache holds, and what goes first when it holds too much."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from servewright_runtime.fetch.layout import (
    STATE_NAME,
    Layout,
    Record,
    listed,
    read_json,
    working,
)
from servewright_runtime.fetch.locks import hold, is_held


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of `servewright cache`: a model and a source that gave it, or an unfinished one."""

    source: str | None  # without credentials; None: no source is recorded
    digest: str | None  # None: an unfinished download
    bytes: int
    last_used: float  # Unix time, seconds
    in_use: bool  # by a running process


@dataclass(frozen=True, slots=True)
class Pruned:
    """What pruning did."""

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
    in_use: bool
    entries: list[Entry] = field(default_factory=list)
    records: list[Path] = field(default_factory=list)


def entries(layout: Layout) -> list[Entry]:
    """All models and unfinished downloads, the most recently used first."""
    found = [entry for item in _items(layout) for entry in item.entries]
    return sorted(found, key=lambda entry: (-entry.last_used, entry.source or ""))


def evict(layout: Layout, *, keep_bytes: int, used_before: float | None = None) -> Pruned:
    """Remove the least recently used, and none in use, until at most `keep_bytes` are left.

    used_before: only what was last used before that Unix time. The caller holds `layout.lock`.
    """
    items = sorted(_items(layout), key=lambda item: item.last_used)
    left = sum(item.bytes for item in items)
    removed: list[Entry] = []
    freed = 0
    for item in items:
        if left <= keep_bytes and not (keep_bytes == 0 and item.bytes == 0):
            break
        if used_before is not None and item.last_used >= used_before:
            break
        if _remove(item):
            removed += item.entries
            freed += item.bytes
            left -= item.bytes
    return Pruned(removed, freed, left, sum(item.bytes for item in items if item.in_use))


def sweep(layout: Layout, *, written_before: float) -> None:
    """Remove what killed fetches left, unless it can be resumed and is newer than that."""
    for folder in layout.work_folders():
        if (folder / STATE_NAME).exists() and _tree(folder)[1] >= written_before:
            continue
        with working(folder, wait=False) as is_ours:
            if is_ours:
                shutil.rmtree(folder, ignore_errors=True)


def _items(layout: Layout) -> Iterator[_Item]:
    records: dict[str, list[tuple[Path, Record]]] = {}
    for path, record in layout.records():
        records.setdefault(record.digest, []).append((path, record))
    for blob in listed(layout.blobs):
        with suppress(FileNotFoundError):
            yield _blob_item(blob, records.get(f"sha256:{blob.name}", []))
    for folder in listed(layout.work):
        if folder.is_dir():
            size, written = _tree(folder)
            in_use = is_held(folder.with_suffix(".lock"))
            source = read_json(folder / STATE_NAME).get("source")
            shown = source if isinstance(source, str) else None
            entry = Entry(shown, None, size, written, in_use)
            yield _Item(folder, size, written, in_use, [entry])


def _blob_item(blob: Path, records: list[tuple[Path, Record]]) -> _Item:
    status, in_use, digest = blob.stat(), is_held(blob), f"sha256:{blob.name}"
    item = _Item(blob, status.st_size, status.st_mtime, in_use)
    for path, record in records:
        with suppress(FileNotFoundError):
            used = path.stat().st_mtime
            item.entries.append(Entry(record.source, digest, item.bytes, used, in_use))
            item.records.append(path)
    if item.entries:
        item.last_used = max(entry.last_used for entry in item.entries)
    else:
        item.entries.append(Entry(None, digest, item.bytes, item.last_used, in_use))
    return item


def _remove(item: _Item) -> bool:
    if item.path.is_dir():
        with working(item.path, wait=False) as is_ours:
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


def _tree(folder: Path) -> tuple[int, float]:
    """Bytes in `folder` and below, and the Unix time of the last write there."""
    total, newest = 0, 0.0
    for base, _, names in os.walk(folder):
        for path in (Path(base), *(Path(base, name) for name in names)):
            with suppress(FileNotFoundError):
                status = path.lstat()
                newest = max(newest, status.st_mtime)
                total += status.st_size if path.name in names else 0
    return total, newest
