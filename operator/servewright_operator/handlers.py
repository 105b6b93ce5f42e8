"""kopf as watcher: each event goes into the store, and its owner's key into the queue.

Only `on.event` handlers: every other kind of kopf's writes annotations or finalizers on the
objects. They do nothing that waits and decide nothing. What kopf's watches miss (it never tells
of objects that vanished while a watch was down) is healed by LISTs, see resync.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import kopf

from servewright_operator import kinds, names
from servewright_operator.kinds import Kind
from servewright_operator.queue import Queue
from servewright_operator.store import Store, is_wish

# What happens to children and pods comes in flurries, and each pass that sees something new writes
# status: one after this long sees most of a flurry together.
FLURRY_S = 0.5


def registry(
    login: Callable[[], Awaitable[kopf.ConnectionInfo]],
    watched: Iterable[Kind],
    store: Store,
    queue: Queue,
    relisted: Callable[[], None],
) -> kopf.OperatorRegistry:
    """Handlers that watch kinds, and the way to log in. relisted: called when kopf LISTs."""
    made = kopf.OperatorRegistry()

    @kopf.on.login(registry=made)
    async def _login(**_: Any) -> kopf.ConnectionInfo:
        return await login()

    async def learn(event: kopf.RawEvent, **_: Any) -> None:
        seen: Any = event["object"]
        before = store.get(seen["metadata"]["uid"])
        key = store.remove(seen) if event["type"] == "DELETED" else store.put(seen)
        if key is None:
            return
        if seen["kind"] == kinds.MODEL_SERVICE.name and is_wish(before, seen):
            queue.add(key)
        else:
            queue.add_after(key, FLURRY_S)

    def is_news(event: kopf.RawEvent, **_: Any) -> bool:
        if event["type"] is None:  # an item of a LIST
            relisted()
        # Half of all events echo our own writes; calling a handler costs kopf a millisecond.
        return event["type"] == "DELETED" or store.is_news(event["object"])

    for kind in watched:
        kopf.on.event(*_selector(kind), registry=made, when=is_news)(learn)
    return made


class _NoDiffs(kopf.DiffBaseStorage):
    """kopf compares nothing for us; its own way copies each object twice: 3 ms an event."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass


class _NoProgress(kopf.ProgressStorage):
    """kopf keeps no state on objects for us."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass

    def purge(self, **_: Any) -> None:
        pass

    def touch(self, **_: Any) -> None:
        pass

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


class _Backoffs:
    """Seconds between tries of a failing LIST: about ten minutes, then kopf ends the process."""

    def __iter__(self) -> Iterator[float]:
        yield from (1, 2, 4, 8, 15)
        yield from [30] * 20


def settings(watched: Iterable[Kind]) -> kopf.OperatorSettings:
    """kopf's settings."""
    made = kopf.OperatorSettings()
    made.posting.enabled = False  # Events of our own
    made.persistence.diffbase_storage = _NoDiffs()
    made.persistence.progress_storage = _NoProgress()
    made.scanning.disabled = True  # needs rights on namespaces and CRDs
    made.networking.connect_timeout = 5
    made.networking.request_timeout = 30
    made.networking.error_backoffs = _Backoffs()
    made.networking.enforce_retry_after = True
    made.watching.connect_timeout = 10
    made.watching.server_timeout = 600
    made.watching.chunk_size = 100  # all kinds are LISTed at once
    made.queueing.worker_limit = None  # handlers are instant
    made.queueing.idle_timeout = 0.05  # else each object seen is held by a task for 5 s
    made.process.ultimate_exiting_timeout = 20
    for kind in watched:
        if kind != kinds.MODEL_SERVICE:
            made.watching.label_selectors[_selector(kind)] = names.SELECTOR
    return made


async def watch(
    made: kopf.OperatorRegistry,
    made_settings: kopf.OperatorSettings,
    *,
    namespaces: Iterable[str],
    identity: str,
    ready: asyncio.Event,
) -> None:
    """Run kopf until it is cancelled or gives up; `ready` is set once it has started."""
    namespaces = list(namespaces)
    await kopf.operator(
        registry=made,
        settings=made_settings,
        standalone=True,  # of kopf's peering, which does not fence
        clusterwide=not namespaces,
        namespaces=namespaces,
        identity=identity,  # type: ignore[arg-type]  # a NewType that kopf does not export
        ready_flag=ready,
    )


def _selector(kind: Kind) -> tuple[str, str, str]:
    group, _, version = kind.api_version.rpartition("/")
    return group, version, kind.plural
