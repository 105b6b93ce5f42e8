"""SHA-256 of model files: the one digest that manifests, the cache and the fetchers speak."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import BinaryIO

from servewright_runtime.errors import ConfigError

# Large enough that Python's cost per call vanishes beside hashing, small enough for any cache.
CHUNK_BYTES = 1 << 20

Progress = Callable[[int, int | None], None]
"""Called with bytes done and the total, or None while nobody knows it. May raise to stop."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def parse_digest(text: str) -> str:
    """The digest `sha256:<64 hex digits>` in lower case. Raises ConfigError on anything else."""
    digest = text.lower()
    if not _DIGEST.fullmatch(digest):
        raise ConfigError(
            f"The digest {text!r} is not of the form sha256:<64 hexadecimal digits>; "
            "`sha256sum FILE` prints them."
        )
    return digest


def digest_of(file: BinaryIO, *, total: int | None = None, progress: Progress | None = None) -> str:
    """Hash `file` from its position to its end."""
    sha256, done = hashlib.sha256(), 0
    while chunk := file.read(CHUNK_BYTES):
        sha256.update(chunk)
        done += len(chunk)
        if progress is not None:
            progress(done, total)
    return named(sha256)


def named(sha256: hashlib._Hash) -> str:
    """The digest with its algorithm, as manifests write it."""
    return f"sha256:{sha256.hexdigest()}"


def require_digest(source: str, *, wanted: str | None, came: str) -> None:
    """Raise ConfigError, with both digests, when a digest was asked for and another came."""
    if wanted is not None and wanted != came:
        raise ConfigError(
            f"{source}: the file's digest is {came}, but the manifest asks for {wanted}; "
            "correct model.digest if this is the file you mean, else distrust the source.",
            reason="DigestMismatch",
        )
