"""Locks between processes and threads, held by an open file and freed by the kernel with it.

`flock` belongs to the open file, so a lock ends with its holder however that one dies, and two
threads that open the same path exclude each other as two processes do.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def hold(path: Path, *, shared: bool = False, wait: bool = True, create: bool = True) -> int | None:
    """Lock the file at `path` and return its descriptor; closing that one frees the lock.

    None when `wait` is false and someone else has it. A holder may remove the file, so a lock
    counts only if the path still names the locked file. Raises OSError, FileNotFoundError when
    `create` is false and there is none.
    """
    # A shared lock needs no right to write, so a cache on a read-only disk can be used.
    flags = os.O_CLOEXEC | (os.O_RDONLY if shared else os.O_RDWR) | (os.O_CREAT if create else 0)
    while True:
        fd = os.open(path, flags, 0o600)
        try:
            operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(fd, operation | (0 if wait else fcntl.LOCK_NB))
            if _names(path, fd):
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock at `path` exclusively; the file stays."""
    fd = hold(path)
    assert fd is not None
    try:
        yield
    finally:
        os.close(fd)


def _names(path: Path, fd: int) -> bool:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    ours = os.fstat(fd)
    return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)


def is_held(path: Path) -> bool:
    """Whether someone holds the lock at `path` now."""
    try:
        fd = hold(path, wait=False, create=False)
    except OSError:
        return False
    if fd is None:
        return True
    os.close(fd)
    return False
