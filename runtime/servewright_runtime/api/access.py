"""API keys: a folder of files, one key each, read again when it changes.

Only SHA-256 hashes are kept in memory, and every stored hash is compared in constant time, so
neither a dump nor a stopwatch tells a key. A file's name is the key's name, which logs may show.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

# A change is seen at most this late; a look costs a stat per key.
LOOK_INTERVAL_S = 1.0
# A key is a line of text; what is longer is no key but a mistake in the mount.
MAX_KEY_BYTES = 4096
MAX_KEYS = 1000

_Signature = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request says it comes from: the hash of its key, None without one."""

    key_hash: bytes | None


ANONYMOUS = Caller(None)


def identify(authorization: bytes | None) -> Caller:
    """The caller of an `Authorization` header; anything but `Bearer KEY` is anonymous."""
    if authorization is None or authorization[:7].lower() != b"bearer ":
        return ANONYMOUS
    key = authorization[7:].strip()
    return Caller(hashlib.sha256(key).digest()) if key else ANONYMOUS


class KeyFolder:
    """The keys in `path`. A missing or empty folder admits nobody.

    Kubernetes swaps a mounted Secret by one rename of a hidden link, which changes what every file
    name leads to; so files are compared by inode, size and time, links followed, and hidden
    entries are not keys.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._looked_at = float("-inf")
        self._signature: _Signature | None = None
        self._hashes: tuple[tuple[str, bytes], ...] = ()

    def find(self, caller: Caller) -> str | None:
        """The name of the caller's key, or None if it is not one of ours."""
        self._look()
        if caller.key_hash is None:
            return None
        found = None
        for name, key_hash in self._hashes:  # all of them, whichever matches
            if hmac.compare_digest(key_hash, caller.key_hash):
                found = name
        return found

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked_at < LOOK_INTERVAL_S:
            return
        self._looked_at = now
        signature = _signature(self._path)
        if signature == self._signature:
            return
        hashes = _read(self._path, [name for name, *_ in signature])
        if _signature(self._path) != signature:
            self._looked_at = float("-inf")  # swapped while we read: look again at the next request
            return
        self._signature, self._hashes = signature, hashes
        log.info("keys read", extra={"folder": str(self._path), "keys": len(hashes)})


def _signature(folder: Path) -> _Signature:
    """Name, inode, size and time of each key file, by name."""
    entries = []
    try:
        with os.scandir(folder) as listing:
            for entry in listing:
                if entry.name.startswith("."):
                    continue
                try:
                    stat = os.stat(entry.path)
                except OSError:
                    continue  # swapped between listing and stat
                entries.append((entry.name, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    except OSError as error:
        log.warning("keys unreadable", extra={"folder": str(folder), "error": str(error)})
    return tuple(sorted(entries)[:MAX_KEYS])


def _read(folder: Path, names: list[str]) -> tuple[tuple[str, bytes], ...]:
    hashes = []
    for name in names:
        try:
            with (folder / name).open("rb") as file:
                key = file.read(MAX_KEY_BYTES + 1).strip()
        except OSError as error:
            log.warning("key unreadable", extra={"key": name, "error": str(error)})
            continue
        if 0 < len(key) <= MAX_KEY_BYTES:
            hashes.append((name, hashlib.sha256(key).digest()))
        else:
            log.warning("key ignored", extra={"key": name, "limit_bytes": MAX_KEY_BYTES})
    return tuple(hashes)
