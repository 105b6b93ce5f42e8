"""An HTTP server in a thread of its own, for as long as a `with` lasts."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from http.server import ThreadingHTTPServer
from types import TracebackType
from typing import Self


class JoinedServer(ThreadingHTTPServer):
    """Its threads are joined by server_close, so no test leaves one behind."""

    daemon_threads = False
    block_on_close = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients may go away at any time."""


class Threaded(ABC):
    """What is served is made by `make_server` when the `with` begins."""

    @abstractmethod
    def make_server(self) -> JoinedServer:
        """On a free port of loopback."""

    def __enter__(self) -> Self:
        self._server = self.make_server()
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Go away; the port refuses connections from now on. May be called again."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])
