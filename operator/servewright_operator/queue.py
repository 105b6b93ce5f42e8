"""Which ModelServices need a pass, and when: the rules of controller-runtime's work queue.

A key waits at most once, is worked on by at most one worker, and when it is added while it is
worked on, it waits again afterwards: so no change is missed, and a burst of changes is one pass.
First come, first served. A failed key comes back later and later.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Protocol

from servewright_operator import metrics
from servewright_operator.names import Key

BACKOFF_MIN_S, BACKOFF_MAX_S = 1.0, 300.0


class Timer(Protocol):
    """What the loop's call_at gives."""

    def cancel(self) -> None: ...

    def when(self) -> float: ...


class Queue:
    """Keys to work on. `get` one, then tell `done`; the rest may be called at any time.

    call_at and clock: the loop's, or a test's.
    """

    def __init__(
        self,
        *,
        call_at: Callable[[float, Callable[[], None]], Timer],
        clock: Callable[[], float],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._call_at, self._clock, self._jitter = call_at, clock, jitter
        self._waiting: asyncio.Queue[Key] = asyncio.Queue()
        self._dirty: dict[Key, float] = {}  # since when; those being worked on included
        self._processing: dict[Key, float] = {}  # since when
        self._timers: dict[Key, Timer] = {}
        self._failures: dict[Key, int] = {}
        metrics.QUEUE_DEPTH.set_function(lambda: self.waiting)

    def __len__(self) -> int:
        """Keys that wait or are worked on; those added for later are not counted."""
        return len(self._dirty.keys() | self._processing.keys())

    @property
    def waiting(self) -> int:
        """Keys that wait for a worker."""
        return self._waiting.qsize()

    @property
    def oldest_s(self) -> float:
        """How long the longest pass under way has been so."""
        return self._clock() - min(self._processing.values(), default=self._clock())

    def add(self, key: Key) -> None:
        """Ask for a pass that begins after now."""
        metrics.QUEUE_ADDS.inc()
        if key in self._dirty:
            return
        self._dirty[key] = self._clock()
        if key not in self._processing:
            self._waiting.put_nowait(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Ask for a pass in a while; of several such the earliest counts."""
        when = self._clock() + seconds
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= when:
                return
            timer.cancel()
        self._timers[key] = self._call_at(when, lambda: self._due(key))

    def retry(self, key: Key, *, at_least_s: float = 0.0) -> float:
        """Ask for a pass after a failed one: in how many seconds, twice as many each time."""
        metrics.QUEUE_RETRIES.inc()
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        # 2 ** 10 s is beyond the maximum; larger powers would overflow in the end.
        backoff = min(BACKOFF_MIN_S * 2.0 ** min(failures - 1, 10), BACKOFF_MAX_S)
        # Up to a quarter more, so that what failed together does not come back together.
        delay = max(backoff, at_least_s) * (1 + self._jitter() / 4)
        self.add_after(key, delay)
        return delay

    def succeeded(self, key: Key) -> None:
        """The next failure counts as the first."""
        self._failures.pop(key, None)

    def forget(self, key: Key) -> None:
        """The ModelService is gone: nothing is planned for it any more."""
        self._failures.pop(key, None)
        if timer := self._timers.pop(key, None):
            timer.cancel()

    async def get(self) -> Key:
        """The key that waited longest, to be worked on until `done`."""
        key = await self._waiting.get()
        metrics.QUEUE_SECONDS.observe(self._clock() - self._dirty.pop(key))
        self._processing[key] = self._clock()
        return key

    def done(self, key: Key) -> None:
        """The pass over a key ended, however it did."""
        del self._processing[key]
        if key in self._dirty:
            self._waiting.put_nowait(key)

    def close(self) -> None:
        """Drop what is planned for later."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _due(self, key: Key) -> None:
        del self._timers[key]
        self.add(key)


def on_loop() -> Queue:
    """A queue on the running loop's clock."""
    loop = asyncio.get_running_loop()

    def call_at(when: float, call: Callable[[], None]) -> Timer:
        return loop.call_at(when, call)

    return Queue(call_at=call_at, clock=loop.time)
