"""LISTs everything: at the start, once more soon, then every few minutes, and soon after kopf did.

The first LIST is what the first passes work from. The second closes the gap between it and the
moment at which each of kopf's watches began. The later ones find what a watch missed: an object
that went away while a watch was down stays in the store until a LIST lacks it. That is looked for
whenever a watch could not go on where it was and kopf had to LIST: it tells what there is, never
what is no longer there.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from servewright_operator import kinds, metrics, names
from servewright_operator.client import ApiError, Client
from servewright_operator.kinds import Kind
from servewright_operator.queue import Queue
from servewright_operator.store import Store

log = logging.getLogger(__name__)

SECOND_AFTER_S = 5.0  # the watches begin with a LIST of their own
_RETRY_S = 2.0
# One cause, an API server that restarts, makes all watches begin anew: one round for all of them.
_AFTER_RELIST_S = 2.0
_JITTER = 0.2  # of the period, either way, so that operators do not LIST together
# All keys get a pass within this part of the period, one after the other.
_SPREAD = 0.5


class NotInstalled(Exception):
    """The API server knows no ModelServices."""


class Resync:
    """Fills the store from LISTs and queues what changed.

    on_list: told whether the cluster has PodMonitors, after each round.
    """

    def __init__(
        self,
        client: Client,
        store: Store,
        queue: Queue,
        *,
        namespaces: Sequence[str],
        period_s: float,
        on_list: Callable[[bool], None],
    ) -> None:
        self._client, self._store, self._queue = client, store, queue
        self._scopes: Sequence[str | None] = namespaces or (None,)
        self._period_s, self._on_list = period_s, on_list
        self._watching, self._relisted = asyncio.Event(), asyncio.Event()

    def watches_began(self) -> None:
        """kopf begins to watch."""
        self._watching.set()

    def relisted(self) -> None:
        """kopf has LISTed some kind: its watch could not go on."""
        self._relisted.set()

    async def first(self) -> None:
        """LIST until it succeeds, and queue every ModelService."""
        while True:
            try:
                await self.once()
            except ApiError as error:
                log.warning("could not list", extra={"error": str(error)})
                await asyncio.sleep(max(_RETRY_S, error.retry_after_s or 0))
            else:
                break
        for key in self._store.service_keys():
            self._queue.add(key)

    async def forever(self) -> None:
        """The rounds after the first."""
        await self._watching.wait()
        await self._round(SECOND_AFTER_S)
        while True:
            await self._round(self._period_s * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311
            for key in self._store.service_keys():
                self._queue.add_after(key, self._period_s * _SPREAD * random.random())  # noqa: S311

    async def after_relists(self) -> None:
        """A round soon after kopf has LISTed, but for its first LISTs: the second round is."""
        await self._watching.wait()
        await asyncio.sleep(SECOND_AFTER_S)
        self._relisted.clear()
        while True:
            await self._relisted.wait()
            await asyncio.sleep(_AFTER_RELIST_S)
            self._relisted.clear()
            await self._round(0.0)

    async def once(self) -> set[names.Key]:
        """LIST every kind once: whose objects changed. Raises ApiError, NotInstalled."""
        changed = set()
        for kind in kinds.WATCHED:
            for scope in self._scopes:
                changed |= await self._list(kind, scope)
        has_pod_monitors = True
        try:
            for scope in self._scopes:
                changed |= await self._list(kinds.POD_MONITOR, scope)
        except ApiError as error:
            if error.status not in (403, 404):
                raise
            has_pod_monitors = False
        self._on_list(has_pod_monitors)
        metrics.RESYNCED.set_to_current_time()
        return changed

    async def _round(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        while True:
            try:
                for key in await self.once():
                    self._queue.add(key)
            except ApiError as error:
                log.warning("could not list", extra={"error": str(error)})
                await asyncio.sleep(max(_RETRY_S, error.retry_after_s or 0))
            else:
                return

    async def _list(self, kind: Kind, scope: str | None) -> set[names.Key]:
        selector = "" if kind == kinds.MODEL_SERVICE else names.SELECTOR
        try:
            listed, version = await self._client.list_all(kind, scope, selector=selector)
        except ApiError as error:
            if error.status == 404 and kind == kinds.MODEL_SERVICE:
                raise NotInstalled(
                    "The API server knows no ModelServices: install the chart servewright-crds."
                ) from error
            raise
        changed, ghosts = self._store.replace(kind, scope, listed, version)
        if ghosts:
            metrics.GHOSTS.labels(kind.name).inc(ghosts)
            log.info("healed ghosts", extra={"kind": kind.name, "ghosts": ghosts})
        return changed
