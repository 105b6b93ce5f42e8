"""A model's chat template: a program from the model file, rendered where it can do no harm.

jinja2's immutable sandbox keeps a template from Python's insides, but not from running forever or
eating all memory, and inside one process nothing can: a thread cannot be killed, and `'a' *
10**9` or a deep power is one call in C that no counter sees. So each template has a small process
of its own (`chat_worker.py`, about 15 MB), kept warm, whose processor time and memory the kernel
bounds. A render takes some 0.2 ms; one over its bounds costs its worker, and the next gets a new
one. The worker has no environment, no open files, and ends when this process ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from servewright_runtime.errors import RequestError

# Known templates render in under 1 ms and come to less than 30 kB of source.
CPU_S = 1.0
# A busy machine may let the worker wait for a processor; a dead one must not be waited for.
WALL_S = 15.0
MEMORY_BYTES = 512 << 20  # of address space; python itself takes 40 MB
MAX_CHARS = 8 << 20  # of rendered text, 2 million tokens
MAX_SOURCE_CHARS = 1 << 20

_WORKER = Path(__file__).with_name("chat_worker.py")


class _WorkerGoneError(Exception):
    """The worker ended, or its time is up, before it answered."""


class JinjaChatTemplate:
    """A `ChatTemplate` in jinja2's language. Thread-safe; one render at a time.

    A source that does not compile is no error here: rendering it answers with why.
    """

    def __init__(self, source: str, *, bos_token: str, eos_token: str) -> None:
        self._first = {
            "source": source,
            "bos_token": bos_token,
            "eos_token": eos_token,
            "cpu_s": CPU_S,
            "memory_bytes": MEMORY_BYTES,
            "max_chars": MAX_CHARS,
        }
        self._broken: str | None = None  # why the source never renders
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        if len(source) > MAX_SOURCE_CHARS:
            self._broken = f"has {len(source)} characters; at most {MAX_SOURCE_CHARS} are compiled"
        else:
            # Started now and asked later: it compiles while the weights load.
            self._worker = _Worker(self._first)

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        """Text of the conversation. Raises RequestError (400) where the template refuses it."""
        request = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        with self._lock:
            answer = self._ask(request)
        if "refused" in answer:
            raise RequestError(
                f"the model's chat template refuses the messages: {answer['refused']}",
                param="messages",
            )
        if "error" in answer:
            raise RequestError(
                f"the model's chat template {answer['error']}; change the messages, or render "
                "the conversation yourself and send it to /v1/completions.",
                param="messages",
            )
        return answer["text"]

    def close(self) -> None:
        """End the worker. No render may follow."""
        with self._lock:
            self._broken = "is closed"
            self._drop_worker()

    def _ask(self, request: dict[str, Any]) -> dict[str, str]:
        if self._broken is not None:
            return {"error": self._broken}
        if self._worker is not None and self._worker.has_ended:  # killed while it was idle
            self._drop_worker()
        try:
            if self._worker is None:
                self._worker = _Worker(self._first)
            if not self._worker.is_compiled:
                compiled = self._worker.receive()
                if "error" in compiled:
                    self._broken = compiled["error"]
                    self._drop_worker()
                    return compiled
                self._worker.is_compiled = True
            self._worker.send(request)
            return self._worker.receive()
        except _WorkerGoneError:
            self._drop_worker()
            return {"error": f"was stopped: it needs more than {CPU_S:g} s or too much memory"}

    def _drop_worker(self) -> None:
        if self._worker is not None:
            self._worker.end()
            self._worker = None


class _Worker:
    """One process that has been sent a template, and the pipes to it."""

    def __init__(self, first: Mapping[str, Any]) -> None:
        # -I: neither the environment nor the working directory choose what it imports.
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            bufsize=0,
        )
        self.end = weakref.finalize(self, _end, self._process)
        self.is_compiled = False
        with contextlib.suppress(_WorkerGoneError):  # `receive` will find it gone
            self.send(first)

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone before it was asked."""
        return self._process.poll() is not None

    def send(self, message: Mapping[str, Any]) -> None:
        """Write a message, whole. Raises _WorkerGoneError."""
        data = json.dumps(message).encode()
        view = memoryview(len(data).to_bytes(8, "little") + data)
        assert self._process.stdin is not None
        fd = self._process.stdin.fileno()
        try:
            while view:  # the worker reads a message whole before it works, so this ends
                view = view[os.write(fd, view) :]
        except BrokenPipeError:
            raise _WorkerGoneError from None

    def receive(self) -> dict[str, str]:
        """Wait for an answer, WALL_S at most. Raises _WorkerGoneError."""
        deadline = time.monotonic() + WALL_S
        length = int.from_bytes(self._read(8, deadline), "little")
        if length > 8 * MAX_CHARS:  # a character is at most 12 bytes of JSON, but mostly 1
            raise _WorkerGoneError
        answer: dict[str, str] = json.loads(self._read(length, deadline))
        return answer

    def _read(self, count: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        data = bytearray()
        while len(data) < count:
            wait_s = max(deadline - time.monotonic(), 0.0)
            poll = select.poll()  # `select` itself takes no descriptor above 1023
            poll.register(fd, select.POLLIN)
            if not poll.poll(wait_s * 1000):
                raise _WorkerGoneError
            piece = os.read(fd, min(count - len(data), 1 << 20))
            if not piece:
                raise _WorkerGoneError
            data += piece
        return bytes(data)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
