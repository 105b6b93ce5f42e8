"""What a disk says no with, in one sentence: full, read-only, or not ours to write."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from servewright_runtime.errors import ConfigError, StartError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Cures:
    """What who keeps the models can do where the disk says no; each ends a sentence."""

    when_full: str = (
        "make room (`servewright cache prune --all` drops models not in use) or set "
        "SERVEWRIGHT_CACHE to a folder on a larger disk"
    )
    when_closed: str = "set SERVEWRIGHT_CACHE to a folder that you may write"


class NoSpace(OSError):
    """ENOSPC that knows how many bytes were still to come; None where nobody does."""

    def __init__(self, needed_bytes: int | None) -> None:
        super().__init__(errno.ENOSPC, "No space left on device")
        self.needed_bytes = needed_bytes


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise NoSpace, before a byte is written, where `needed_bytes` more cannot fit."""
    if shutil.disk_usage(folder).free < needed_bytes:
        raise NoSpace(needed_bytes)


@contextmanager
def explained(source: str, root: Path, cures: Cures) -> Iterator[None]:
    """Turn the OSErrors of work in the cache at `root` into a StartError with a cure."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise _disk_full(source, root, cures, getattr(error, "needed_bytes", None)) from error
        raise StartError(
            f"{source} cannot be kept in the cache {root}: {error.strerror or error} "
            f"({error.filename or 'no file named'}); {cures.when_closed}.",
            reason="CacheFailed",
        ) from error


def too_large(source: str, size: int | None, max_bytes: int) -> ConfigError:
    """The error for a file above the bound; `size` is None where it is known only to be above."""
    came = "more" if size is None else f"{size:,} bytes"
    return ConfigError(
        f"{source} is too large: at most {max_bytes:,} bytes are fetched and {came} would come; "
        "raise SERVEWRIGHT_MAX_MODEL_BYTES if that is meant."
    )


def _disk_full(source: str, root: Path, cures: Cures, needed_bytes: int | None) -> StartError:
    try:
        free = f"{shutil.disk_usage(root).free:,} bytes are free"
    except OSError:
        free = "there is no room left"
    need = "more room is needed" if needed_bytes is None else f"{needed_bytes:,} bytes are needed"
    return StartError(
        f"{source} does not fit on the disk of {root}: {need} and {free}; {cures.when_full}.",
        reason="DiskFull",
    )
