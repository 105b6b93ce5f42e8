"""The line between the supervisor and its driver and replica: a Unix socket in the run dir.

Each packet is one JSON object, `{"event": ..., ...}`. The supervisor's packets may
carry open files: its stderr, and the serving socket, which it opened before anything slow began.
The end of the line means that the other side is dead, however it died.

| from | event | fields |
| --- | --- | --- |
| driver, replica | hello | role |
| supervisor | welcome | files: stderr |
| supervisor | serve (to the replica) | files: the listening socket; models lie in the run dir |
| replica | progress | phase, fraction |
| replica | ready | cold_start |
| replica | drained | |
| driver, replica | failed | exit_code, reason, message |
| driver | serve_status | status |
"""

from __future__ import annotations

import array
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

from servewright_runtime.errors import ServewrightError
from servewright_runtime.supervisor.rundir import RunDir

MAX_PACKET = 65536  # bytes
_MAX_FILES = 8

Message = dict[str, Any]


class Link:
    """The child's end. `send` may be called from any thread."""

    def __init__(self, role: str, run: RunDir) -> None:
        """Raises OSError when there is no supervisor."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(str(run.control_socket))
        self.send("hello", role=role)

    def send(self, event: str, **fields: Any) -> None:
        """Tell the supervisor. If it is dead, `watch` tells; nothing is raised here."""
        try:
            self._socket.sendall(encode(event, **fields))
        except (BrokenPipeError, ConnectionResetError):
            return

    def send_failure(self, error: Exception) -> None:
        """Tell the supervisor why this process cannot go on."""
        if isinstance(error, ServewrightError):
            code, reason, message = error.exit_code, error.reason, error.message
        else:
            code, reason, message = 1, "InternalError", f"{type(error).__name__}: {error}"
        self.send("failed", exit_code=code, reason=reason, message=message[:2000])

    def watch(
        self, on_message: Callable[[Message, list[int]], None], on_gone: Callable[[], None]
    ) -> None:
        """Read in a thread of its own: messages with their file descriptors, then the end."""

        def read() -> None:
            while True:
                try:
                    data, files, _, _ = socket.recv_fds(self._socket, MAX_PACKET, _MAX_FILES)
                except ConnectionResetError:
                    break
                if not data:
                    break
                on_message(json.loads(data), files)
            on_gone()

        threading.Thread(target=read, name="supervisor-link", daemon=True).start()


def encode(event: str, **fields: Any) -> bytes:
    """A packet. Asserts that it is within MAX_PACKET bytes."""
    data = json.dumps({"event": event, **fields}).encode()
    assert len(data) <= MAX_PACKET, f"the packet {event} has {len(data)} bytes"
    return data


def send_with_files(connection: socket.socket, data: bytes, files: list[int]) -> None:
    """Send a packet with open files. The packet is small, so a non-blocking socket takes it."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
    connection.sendmsg([data], [rights])
