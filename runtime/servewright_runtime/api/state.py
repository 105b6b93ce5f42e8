"""What the API serves and knows: the models, the bounds, and where the process stands."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from servewright_runtime.api.access import Caller, KeyFolder
from servewright_runtime.engine.config import EngineConfig
from servewright_runtime.engine.engine import EngineStats
from servewright_runtime.engine.requests import Request
from servewright_runtime.engine.streams import Stream
from servewright_runtime.errors import Overloaded
from servewright_runtime.models.loaded import Tokenizer


class Engine(Protocol):
    """What the API asks of an engine beside streams."""

    def stats(self) -> EngineStats:
        """The engine as it is now."""


class Streams(Protocol):
    """What the API asks of `engine.streams.Streams`."""

    def open(self, requests: Sequence[Request]) -> Stream:
        """Submit the requests, all or none."""


@dataclass(slots=True, eq=False)
class ServedModel:
    """One model behind the API. `keys` is None where access is open to everyone."""

    engine: Engine
    streams: Streams
    tokenizer: Tokenizer
    config: EngineConfig
    revision: str
    created: int  # Unix seconds
    kernel: str  # what computes: part of system_fingerprint
    keys: KeyFolder | None
    max_concurrency: int  # HTTP requests in flight at once; one more is answered 429
    max_output_tokens: int | None  # a request may ask for no more
    in_flight: int = 0
    rendering: asyncio.Lock = field(default_factory=asyncio.Lock)  # held to render a chat
    longest_token_chars: int = field(init=False)  # no token stands for a longer text

    def __post_init__(self) -> None:
        tokenizer = self.tokenizer
        self.longest_token_chars = max(
            max(len(tokenizer.token_bytes(token)), len(tokenizer.token_text(token)))
            for token in range(tokenizer.vocab_size)
        )

    @property
    def name(self) -> str:
        """What clients write in `model`."""
        return self.config.name

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints, equal requests: equal bytes."""
        return f"{self.revision}-{self.kernel}"

    def admits(self, caller: Caller) -> bool:
        """Whether the caller may use this model."""
        return self.keys is None or self.keys.find(caller) is not None

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place among the requests in flight.

        Raises Overloaded (429) when all are taken.
        """
        if self.in_flight >= self.max_concurrency:
            raise Overloaded(
                f"{self.name} has {self.in_flight} requests in flight, of at most "
                f"{self.max_concurrency}; try again later."
            )
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a client may cost before its request is understood."""

    body_bytes: int = 10 * 1024 * 1024
    buffered_bytes: int = 256 * 1024 * 1024  # of all bodies being read at once
    body_timeout_s: float = 30.0  # from the head's end to the body's end
    linger_s: float = 5.0  # reading on after an early refusal, so that the client sees it


@dataclass(slots=True, eq=False)
class AppState:
    """Where the process stands. The replica sets it, the API obeys."""

    serving: bool = False  # the probe has succeeded
    draining: bool = False  # answers say `Connection: close`, /health is 503
    in_flight: int = 0  # requests being answered, health checks apart
    buffered_bytes: int = 0
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._idle.set()

    def enter(self) -> None:
        """Count a request in."""
        self.in_flight += 1
        self._idle.clear()

    def leave(self) -> None:
        """Count it out."""
        self.in_flight -= 1
        if self.in_flight == 0:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until nothing is in flight."""
        await self._idle.wait()
