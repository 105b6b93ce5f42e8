"""The operator's own calls: through each Service as a client, and to a pod's /state.

Beside the reconcile, which never waits for them: `tell` what to ask, read what was answered, and
be called when an answer changes what status shows. Only memory is kept: an operator that starts
asks anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self
from weakref import WeakValueDictionary

import aiohttp

from servewright_operator import calling
from servewright_operator.last_probe import KEY_REFUSED, REPEATS, counts
from servewright_operator.names import Key
from servewright_operator.objects import Object, Probe, ProbeRecord

log = logging.getLogger(__name__)

RETRY_S = 2.0  # after a failure; twice as long after each further one, up to the interval
# Calls that a namespace begins at once, so that a thousand of them do not begin together; others
# have places of their own. Who waits behind calls that hang waits HOLD_S for each _PLACES of them.
_PLACES = 64
_HOLD_S = 2.0  # then a call goes on without a place
# The longest pause between two questions about a pod's state: if it tells one (so long after it is
# ready its model and cold start show), and if not.
_STATE_MAX_S, _NO_STATE_MAX_S = 5.0, 300.0
_READY = "Ready"  # the runtime's last phase


@dataclass(slots=True)
class _Followed:
    """One ModelService: what is asked, and what came."""

    probe: Probe | None = None
    asking: asyncio.Task[None] | None = None
    record: ProbeRecord | None = None
    shown: tuple[str, ...] = ()  # what the last pass that was asked for had to hear
    states: dict[str, Object] = field(default_factory=dict)  # by pod uid
    asking_state: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def tasks(self) -> Iterable[asyncio.Task[None]]:
        """All that is under way for it."""
        return [*([self.asking] if self.asking else []), *self.asking_state.values()]


class Prober:
    """Asks what it is told to ask. On one event loop, as a context.

    changed: called with the key when an answer changes what status shows.
    """

    def __init__(
        self,
        changed: Callable[[Key], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        jitter: Callable[[], float] = random.random,
        retry_s: float = RETRY_S,
        places: int = _PLACES,
        hold_s: float = _HOLD_S,
    ) -> None:
        self._changed = changed
        self._clock, self._now, self._jitter = clock, now, jitter
        self._retry_s, self._hold_s = retry_s, hold_s
        # By namespace, as long as somebody has or awaits a place.
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._places_each = places
        self._followed: dict[Key, _Followed] = {}
        self._calls: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._calls = calling.session()
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [task for followed in self._followed.values() for task in followed.tasks()]
        self._followed.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._calls.close()

    def tell(self, key: Key, probe: Probe | None, ask_state: Mapping[str, str]) -> None:
        """What to keep asking, and (URL by uid) which pods to ask until they are ready. What
        others answered is forgotten.
        """
        followed = self._followed.setdefault(key, _Followed())
        if probe != followed.probe:
            if followed.asking is not None:
                followed.asking.cancel()
            if _subject(probe) != _subject(followed.probe):
                followed.record, followed.shown = None, ()
            followed.probe = probe
            followed.asking = None
            if probe is not None:
                followed.asking = asyncio.create_task(self._keep_asking(key, followed, probe))
        for uid in followed.asking_state.keys() - ask_state.keys():
            followed.asking_state.pop(uid).cancel()
            followed.states.pop(uid, None)
        for uid in ask_state.keys() - followed.asking_state.keys():
            asking = self._ask_state(key, followed, uid, ask_state[uid])
            followed.asking_state[uid] = asyncio.create_task(asking)
        if probe is None and not ask_state:
            del self._followed[key]

    def record(self, key: Key) -> ProbeRecord | None:
        """The last answers of a ModelService."""
        followed = self._followed.get(key)
        return None if followed is None else followed.record

    def states(self, key: Key) -> Mapping[str, Object]:
        """What its pods told of themselves, by uid."""
        followed = self._followed.get(key)
        return {} if followed is None else followed.states

    async def _keep_asking(self, key: Key, followed: _Followed, probe: Probe) -> None:
        while True:
            async with self._place(key.namespace):
                started = self._clock()
                answer = await calling.call(self._calls, probe)
                latency_s = self._clock() - started
            record = self._record(probe, answer, latency_s, followed.record)
            followed.record = record
            shown = _shown(record)
            if shown is not None and shown != followed.shown:
                followed.shown = shown
                log.info(
                    "probe", extra={"key": str(key), "result": record.result, "why": record.message}
                )
                self._changed(key)
            await self._pause(self._pause_s(probe, record))

    def _pause_s(self, probe: Probe, record: ProbeRecord) -> float:
        if record.result == "Succeeded":
            return probe.interval_s
        times = min(max(record.failures, record.repeats) - 1, 12)
        return min(self._retry_s * 2.0**times, probe.interval_s)

    def _record(
        self, probe: Probe, answer: calling.Answer, latency_s: float, before: ProbeRecord | None
    ) -> ProbeRecord:
        failures = 0 if before is None else before.failures
        succeeded_at = None if before is None else before.succeeded_at
        repeats = 1
        if before is not None and (before.result, before.reason) == (answer.result, answer.reason):
            repeats += before.repeats
        now = self._now()
        if answer.result == "Succeeded":
            failures, succeeded_at = 0, now
        elif answer.result == "Failed":
            failures += 1
        elif repeats >= REPEATS:
            failures = 0
        return ProbeRecord(
            time=now,
            revision=answer.revision or probe.revision,
            latency_s=latency_s,
            result=answer.result,
            reason=answer.reason,
            message=answer.message,
            failures=failures,
            repeats=repeats,
            succeeded_at=succeeded_at,
        )

    async def _ask_state(self, key: Key, followed: _Followed, uid: str, url: str) -> None:
        """Ask again and again, ever more rarely, until the pod says that it is ready."""
        pause_s = self._retry_s
        while True:
            async with self._place(key.namespace):
                state = await calling.state(self._calls, url)
            if state is not None:
                before = followed.states.get(uid)
                followed.states[uid] = state
                if before is None or before.get("phase") != state.get("phase"):
                    self._changed(key)
                if state.get("phase") == _READY:
                    return
            await self._pause(pause_s)
            pause_s = min(2 * pause_s, _STATE_MAX_S if state else _NO_STATE_MAX_S)

    @contextlib.asynccontextmanager
    async def _place(self, namespace: str) -> AsyncIterator[None]:
        """A place among the calls of a namespace, for a while at most."""
        places = self._places.get(namespace)
        if places is None:
            places = self._places[namespace] = asyncio.Semaphore(self._places_each)
        await places.acquire()
        is_held = True

        def give_back() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                places.release()

        timer = asyncio.get_running_loop().call_later(self._hold_s, give_back)
        try:
            yield
        finally:
            timer.cancel()
            give_back()

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds * (0.9 + 0.2 * self._jitter()))


def _subject(probe: Probe | None) -> tuple[object, ...] | None:
    """What an answer is about: a change of it makes earlier answers worthless."""
    if probe is None:
        return None
    return (probe.url, probe.model, probe.prompt, probe.expect, probe.revision)


def _shown(record: ProbeRecord) -> tuple[str, ...] | None:
    """What a pass has to hear of in a record: what status shows, its times apart, and more. None:
    nothing yet."""
    if record.reason in KEY_REFUSED and record.failures < REPEATS:
        return (record.reason,)  # a pass looks whether the key is another one by now
    if not counts(record):
        return None
    if record.result == "Succeeded":
        return ("Succeeded",)
    if record.repeats < REPEATS:
        return (record.result, record.revision)
    return (record.result, record.reason, record.revision)
