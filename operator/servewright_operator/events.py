"""Kubernetes Events about a ModelService: what `kubectl describe` tells under its status."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from servewright_operator import kinds, metrics, names
from servewright_operator.client import ApiError, Client
from servewright_operator.objects import Note, Object

log = logging.getLogger(__name__)

REPEAT_AFTER_S = 600.0  # the same is not told again for so long
_REMEMBERED = 5_000
WAITING = 2_000  # some 2 MB; a cluster that changes as a whole has one for each ModelService
_MAX_MESSAGE = 1024  # of the API server


class Events:
    """Tells Events, each once. `post` posts them one by one beside the passes, which never wait for
    it: an Event that cannot be posted, or one too many, is no reason to stop."""

    def __init__(self, client: Client, identity: str, clock: Callable[[], float]) -> None:
        self._client, self._identity, self._clock = client, identity, clock
        self._told: dict[tuple[str, str, str], float] = {}  # when, by uid, reason and message
        self._waiting: asyncio.Queue[Object] = asyncio.Queue(WAITING)
        metrics.EVENTS_WAITING.set_function(self._waiting.qsize)

    def tell(self, service: Object, notes: Sequence[Note]) -> None:
        """Have what was not told lately posted."""
        for note in notes:
            if not self._is_new(service["metadata"]["uid"], note):
                continue
            try:
                self._waiting.put_nowait(self._event(service, note))
            except asyncio.QueueFull:
                metrics.EVENTS_DROPPED.inc()
                log.warning("too many events wait; one is left out", extra={"why": note.reason})

    async def post(self) -> None:
        """Post what is told, for ever."""
        while True:
            event = await self._waiting.get()
            try:
                await self._client.create(event)
            except ApiError as error:
                metrics.EVENTS_DROPPED.inc()
                log.warning("could not post an event", extra={"error": str(error)})
            finally:
                self._waiting.task_done()

    async def posted(self) -> None:
        """Wait until all that was told is posted, or could not be."""
        await self._waiting.join()

    def _is_new(self, uid: str, note: Note) -> bool:
        what = (uid, note.reason, note.message)
        last = self._told.pop(what, None)
        now = self._clock()
        is_new = last is None or now - last >= REPEAT_AFTER_S
        self._told[what] = now if last is None or is_new else last
        while len(self._told) > _REMEMBERED:
            del self._told[next(iter(self._told))]
        return is_new

    def _event(self, service: Object, note: Note) -> Object:
        metadata = service["metadata"]
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "apiVersion": kinds.EVENT.api_version,
            "kind": kinds.EVENT.name,
            "metadata": {
                "namespace": metadata["namespace"],
                "name": f"{metadata['name']}.{secrets.token_hex(8)}",
            },
            "involvedObject": {
                "apiVersion": service["apiVersion"],
                "kind": service["kind"],
                **{key: metadata[key] for key in ("namespace", "name", "uid", "resourceVersion")},
            },
            "type": note.type,
            "reason": note.reason,
            "message": note.message[:_MAX_MESSAGE],
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": names.FIELD_MANAGER},
            "reportingComponent": names.FIELD_MANAGER,
            "reportingInstance": self._identity,
        }
