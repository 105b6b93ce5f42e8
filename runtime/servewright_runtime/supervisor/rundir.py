"""The private folder of one run: sockets, Ray's files, the home of every child process.

Nothing of a run lies elsewhere, so removing it removes all, and runs side by side do not meet.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from servewright_runtime.errors import StartError

RUN_DIR_VARIABLE = "SERVEWRIGHT_RUN_DIR"

_PREFIX = "servewright-run."
# Ray's longest socket, "ray/session_YYYY-MM-DD_HH-MM-SS_uuuuuu_PID/sockets/plasma_store", takes 72
# of the 107 bytes that Linux allows the path of a socket.
_LONGEST_PATH = 35


class RunDir:
    """A folder of mode 0700, locked while its supervisor lives."""

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls) -> RunDir:
        """A new one. Raises StartError where there is no room for it."""
        path, lock = make_private()
        run = cls(path, lock)
        try:
            run.ray_dir.mkdir()
            run.token_file.touch(mode=0o600)
            run.token_file.write_text(secrets.token_hex(32))
        except OSError as error:
            raise no_room(str(path.parent), error) from error
        return run

    @classmethod
    def from_environment(cls) -> RunDir:
        """The run that this process belongs to."""
        return cls(Path(os.environ[RUN_DIR_VARIABLE]), None)

    @property
    def control_socket(self) -> Path:
        """Where the supervisor listens for driver and replica."""
        return self.path / "control.sock"

    @property
    def replica_socket(self) -> Path:
        """Where the replica answers HTTP for the supervisor alone."""
        return self.path / "replica.sock"

    @property
    def models_file(self) -> Path:
        """What is to be served, as `config.dump_models` writes it."""
        return self.path / "models.json"

    @property
    def driver_output(self) -> Path:
        """What the driver and Ray's libraries in it print."""
        return self.path / "driver.log"

    @property
    def ray_dir(self) -> Path:
        """Ray's session with its logs."""
        return self.path / "ray"

    @property
    def token_file(self) -> Path:
        """The secret that Ray's processes show each other."""
        return self.path / "ray-token"

    def remove(self) -> None:
        """Delete it. Processes of the run must have ended, or stand still."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)


def make_private() -> tuple[Path, int]:
    """A new folder of mode 0700 and its lock, held until that is closed. Raises StartError.

    One whose lock nobody holds, as its owner was killed, is removed by the next run.
    """
    root = "/tmp"  # noqa: S108 - the folder made in it is private
    try:
        chosen = tempfile.gettempdir()
        if len(chosen) + 1 + len(_PREFIX) + 8 <= _LONGEST_PATH:
            root = chosen
        _sweep(Path(root))
        while True:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
            # A run that starts at the same time may sweep it up before it is locked.
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                return path, _lock(path)
    except OSError as error:
        raise no_room(root, error) from error


def no_room(root: str, error: OSError) -> StartError:
    """The error for a private folder that cannot be made or written."""
    return StartError(
        f"No private folder could be made in {root}: {error.strerror}; make room there or set "
        "TMPDIR to a folder that can be written."
    )


def _sweep(root: Path) -> None:
    """Remove what runs left whose machine or every process was ended at once."""
    for path in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.lstat().st_uid == os.getuid():
                lock = _lock(path)
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _lock(path: Path) -> int:
    """Lock a folder until the descriptor is closed.

    The folder itself: it outlasts every file in it, so one that is left half removed can be locked
    too; and systemd-tmpfiles, which removes what is old, leaves a locked folder alone.
    Raises BlockingIOError where it is locked, FileNotFoundError where it is gone.
    """
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.stat()  # whoever held the lock may have removed it
    except OSError:
        os.close(lock)
        raise
    return lock
