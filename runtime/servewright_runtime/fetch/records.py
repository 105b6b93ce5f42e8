"""What the cache writes beside the models: small JSON files, replaced at once or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# In a work folder: the fetch can be resumed, and says how.
STATE_NAME = "state.json"


@dataclass(frozen=True, slots=True)
class Record:
    """What a source gave. The blob's `ctime_ns` proves that no one wrote to it since."""

    source: str
    digest: str
    bytes: int
    ctime_ns: int
    etag: str | None = None
    last_modified: str | None = None


def key_of(uri: str) -> str:
    """The file name that stands for a source, which may hold a credential."""
    return hashlib.sha256(uri.encode()).hexdigest()


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


def tree(folder: Path) -> tuple[int, float]:
    """Bytes in `folder` and below, and when the last of its files was written (Unix time)."""
    total, newest = 0, 0.0
    for base, _, names in os.walk(folder):
        for path in (Path(base), *(Path(base, name) for name in names)):
            try:
                stat = path.lstat()
            except FileNotFoundError:
                continue
            newest = max(newest, stat.st_mtime)
            total += stat.st_size if path != Path(base) else 0
    return total, newest
