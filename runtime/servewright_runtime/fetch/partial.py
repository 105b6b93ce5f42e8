"""A download that may end at any byte and go on later, in another process."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import BinaryIO

from servewright_runtime.fetch.digest import CHUNK_BYTES, named
from servewright_runtime.fetch.layout import STATE_NAME, read_json, write_json

# Bytes that may be fetched again after a power cut; syncing so seldom costs no throughput.
_SYNC_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class _State:
    source: str
    etag: str | None
    last_modified: str | None
    total: int | None
    synced_bytes: int  # this much of the file is surely on disk

    @classmethod
    def read(cls, path: Path) -> _State | None:
        """The state in `path`; None where there is none of this version's form."""
        value = read_json(path)
        sizes = (value.get("total"), value.get("synced_bytes"))
        texts = (value.get("etag"), value.get("last_modified"))
        is_sound = (
            value.keys() == {field.name for field in fields(cls)}
            and isinstance(value["source"], str)
            and type(value["synced_bytes"]) is int
            and all(size is None or (type(size) is int and size >= 0) for size in sizes)
            and all(text is None or isinstance(text, str) for text in texts)
        )
        return cls(**value) if is_sound else None


class Partial:
    """The growing file of one source in its work folder, hashed as it grows.

    `size` bytes are there. Only what was synced before its state was written is trusted later.
    """

    def __init__(self, folder: Path, shown: str) -> None:
        self.path = folder / "model"
        self.size = 0
        self.total: int | None = None
        self.etag: str | None = None
        self.last_modified: str | None = None
        self.is_resumed = False  # its bytes came in more than one answer
        self._state_path = folder / STATE_NAME
        self._shown = shown
        self._sha256 = hashlib.sha256()
        self._synced = 0
        self._file: BinaryIO | None = None
        self._resume()

    @property
    def validator(self) -> str | None:
        """What If-Range may say: a strong ETag, else the date."""
        if self.etag is not None and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified

    @property
    def is_whole(self) -> bool:
        """Whether all bytes are there, as far as anyone said how many there are."""
        return self.total is not None and self.size == self.total

    @property
    def digest(self) -> str:
        """Of the bytes that are there."""
        return named(self._sha256)

    def restart(self, *, total: int | None, etag: str | None, last_modified: str | None) -> None:
        """Drop what is there and begin with an answer that has these headers."""
        self.discard()
        self.total, self.etag, self.last_modified = total, etag, last_modified
        self._file = open(self.path, "wb")  # noqa: SIM115 - lives as long as this object
        self._write_state()

    def write(self, chunk: bytes) -> None:
        """Append. Raises OSError."""
        assert self._file is not None
        self._file.write(chunk)
        self._sha256.update(chunk)
        self.size += len(chunk)
        if self.size - self._synced >= _SYNC_BYTES:
            self.sync()

    def sync(self) -> None:
        """Bring what was written to disk, to be resumed from there. Raises OSError."""
        if self._file is not None and self.size > self._synced:
            self._file.flush()
            os.fdatasync(self._file.fileno())
            self._synced = self.size
            self._write_state()

    def finish(self) -> str:
        """Bring the whole file to disk and return its digest; it is not resumed any more."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self._state_path.unlink(missing_ok=True)
        return self.digest

    def discard(self) -> None:
        """Remove file and state."""
        if self._file is not None:
            with suppress(OSError):  # what a full disk did not take is not wanted any more
                self._file.close()
            self._file = None
        self._state_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.size = self._synced = 0
        self.total = self.etag = self.last_modified = None
        self.is_resumed = False
        self._sha256 = hashlib.sha256()

    def close(self) -> None:
        """Leave the file to be resumed. Never raises: it runs while something else fails."""
        with suppress(OSError):
            self.sync()
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _resume(self) -> None:
        state = _State.read(self._state_path)
        try:
            if state is None:
                raise FileNotFoundError
            file = open(self.path, "r+b")  # noqa: SIM115 - lives as long as this object
        except FileNotFoundError:
            self.discard()
            return
        self._file = file
        self.total, self.etag, self.last_modified = state.total, state.etag, state.last_modified
        file.truncate(min(state.synced_bytes, os.fstat(file.fileno()).st_size))
        while chunk := file.read(CHUNK_BYTES):
            self._sha256.update(chunk)
            self.size += len(chunk)
        self._synced = self.size
        self.is_resumed = self.size > 0

    def _write_state(self) -> None:
        write_json(
            self._state_path,
            asdict(_State(self._shown, self.etag, self.last_modified, self.total, self._synced)),
        )
