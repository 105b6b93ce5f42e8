"""The processes under a supervisor: the driver it starts, the links they open, their deaths."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping

from servewright_runtime.supervisor import processes
from servewright_runtime.supervisor.environment import driver_environment
from servewright_runtime.supervisor.link import MAX_PACKET, Message, encode, send_with_files
from servewright_runtime.supervisor.rundir import RunDir

log = logging.getLogger(__name__)

_DRIVER_MODULE = "servewright_runtime.serve.driver"
_SHOWN_OUTPUT = 4000  # characters
_PEER = struct.Struct("3i")  # SO_PEERCRED: pid, uid, gid


class Children:
    """on_message(role, message) and on_death(name, pid) are called on the event loop."""

    def __init__(
        self,
        run: RunDir,
        run_id: str,
        on_message: Callable[[str, Message], None],
        on_death: Callable[[str, int], None],
    ) -> None:
        self.pids: dict[str, int] = {}  # of all that are watched
        self._run = run
        self._run_id = run_id
        self._on_message = on_message
        self._on_death = on_death
        self._links: dict[str, socket.socket] = {}
        self._driver: subprocess.Popen[bytes] | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        self._listener.bind(str(run.control_socket))
        self._listener.listen()

    def start_driver(self) -> None:
        """Start the driver in a session of its own, so that Ctrl-C reaches the supervisor alone.

        What Ray prints goes to a file; the driver's own log lines come to our stderr.
        """
        with self._run.driver_output.open("wb") as output:
            self._driver = subprocess.Popen(
                [sys.executable, "-m", _DRIVER_MODULE],
                env=driver_environment(os.environ, self._run, self._run_id),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.watch("driver", self._driver.pid)

    def watch(self, name: str, pid: int) -> None:
        """Report the death of `pid`, at once if it is dead already."""
        loop = asyncio.get_running_loop()
        self.pids[name] = pid
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            loop.call_soon(self._on_death, name, pid)
            return

        def died() -> None:
            loop.remove_reader(fd)
            os.close(fd)
            self._on_death(name, pid)

        loop.add_reader(fd, died)

    def watch_by_command(self, names: Mapping[str, str]) -> None:
        """Watch descendants by their command names; one that is not found is logged.

        names: what to call each, by command name.
        """
        found = processes.find(os.getpid(), set(names))
        for command, name in names.items():
            if command in found:
                self.watch(name, found[command])
            else:
                log.warning("process not found, its end will not be seen", extra={"what": name})

    def driver_output(self) -> str:
        """The last of what the driver and Ray printed."""
        return self._run.driver_output.read_text(errors="replace")[-_SHOWN_OUTPUT:].strip()

    def driver_exit_code(self) -> int | None:
        """How the driver ended, negative for a signal; None while it lives."""
        return self._driver.poll() if self._driver is not None else None

    def send(self, role: str, event: str, *, files: tuple[int, ...] = (), **fields: object) -> bool:
        """Tell a child, handing over open files. False if it has no link (any more)."""
        link = self._links.get(role)
        if link is None:
            return False
        try:
            send_with_files(link, encode(event, **fields), list(files))
        except OSError as error:
            log.warning("child not reached", extra={"role": role, "error": str(error)})
            return False
        return True

    async def accept(self) -> None:
        """Take links of the driver and the replica, until cancelled."""
        loop = asyncio.get_running_loop()
        with self._listener:
            async with asyncio.TaskGroup() as readers:
                while True:
                    link, _ = await loop.sock_accept(self._listener)
                    readers.create_task(self._read(link))

    async def _read(self, link: socket.socket) -> None:
        pid, _, _ = _PEER.unpack(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        role = ""
        with link, contextlib.suppress(ConnectionResetError):
            while data := await asyncio.get_running_loop().sock_recv(link, MAX_PACKET):
                message = json.loads(data)
                if message["event"] == "hello":
                    role = message["role"]
                    self._links[role] = link
                    if role not in self.pids:
                        self.watch(role, pid)
                    self.send(role, "welcome", files=(sys.stderr.fileno(),))
                self._on_message(role, message)
        if self._links.get(role) is link:
            del self._links[role]

    def end(self) -> list[int]:
        """Kill every process of the run. Returns the pids that are left, of none as a rule."""
        left = processes.kill_all(self._run_id, os.getpid())
        if self._driver is not None and not left:
            self._driver.wait()
        processes.reap_all()
        return left

    def reap(self) -> None:
        """Collect orphans that have ended."""
        if self._driver is not None:
            processes.reap_orphans(keep=self._driver.pid)
