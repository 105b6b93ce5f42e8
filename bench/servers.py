"""Servers under load: start one, wait until it answers, weigh it, load it, stop it."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from bench import memory
from bench.client import Load, Measured
from bench.loads import TOKENS_IN, TOKENS_OUT
from bench.memory import TreeMemory

CLIENT = Path(__file__).with_name("client.py")
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 40.0


class BenchFailed(Exception):
    """A part of the bench did not run; the message says which and what it said."""


def free_port() -> int:
    """A port of the loopback that nothing listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


class Server:
    """A server process with its children, in a session of its own. Use as context manager."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        port: int,
        model: str,
        log: Path,
        env: dict[str, str] | None = None,
        extra: dict[str, object] | None = None,
    ) -> None:
        """extra: fields that its request bodies need besides the common ones."""
        self.name = name
        self.model = model
        self.port = port
        self.ready_s = 0.0  # start of the process until /health answered 200
        self._command = list(command)
        self._log = log
        self._env = {**os.environ, **(env or {})}
        self._extra = extra or {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        began = time.perf_counter()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                start_new_session=True,
            )
        try:
            self._wait_ready(began + READY_TIMEOUT_S)
        except BaseException:
            self._stop()
            raise
        self.ready_s = time.perf_counter() - began
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def _wait_ready(self, deadline: float) -> None:
        assert self._process is not None
        while time.perf_counter() < deadline:
            if self._process.poll() is not None:
                raise self._failure(f"ended with code {self._process.returncode}")
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass  # not listening yet
            finally:
                connection.close()
            time.sleep(0.02)
        raise self._failure(f"was not ready within {READY_TIMEOUT_S:.0f} s")

    def _failure(self, what: str) -> BenchFailed:
        tail = self._log.read_text(errors="replace")[-1500:]
        return BenchFailed(f"{self.name} {what}; {self._log} ends with:\n{tail}")

    def _stop(self) -> None:
        """SIGTERM to the first process, whose duty the others are; SIGKILL if it lingers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def memory(self) -> TreeMemory:
        """Memory of the process and its children as it is now."""
        assert self._process is not None
        return memory.of_tree(self._process.pid)

    def load(
        self,
        words: Sequence[int],
        *,
        streams: int,
        requests: int,
        seed: int,
    ) -> Measured:
        """Run the load client with prompts that were never sent before (seed), and time it."""
        draw = random.Random(seed)
        load = Load(
            port=self.port,
            model=self.model,
            streams=streams,
            prompts=[draw.choices(words, k=TOKENS_IN) for _ in range(requests)],
            max_tokens=TOKENS_OUT,
            extra=self._extra,
        )
        done = subprocess.run(
            [sys.executable, "-I", str(CLIENT)],
            input=json.dumps(dataclasses.asdict(load)),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode != 0:
            raise self._failure(f"under {streams} streams: {done.stderr.strip()}")
        return Measured(**json.loads(done.stdout))
