"""One pass over one ModelService: observe, decide, bring about, tell.

Level-triggered: whatever happened, a pass makes the same of what there is now. A pass that finds
all as planned sends no request but those that looking needs.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from servewright_operator import decide, kinds, metrics
from servewright_operator.apply import Applier, Outcome
from servewright_operator.client import ApiError, Client
from servewright_operator.events import Events
from servewright_operator.names import Key
from servewright_operator.objects import Note, Object, Plan, Probe
from servewright_operator.observe import Observer
from servewright_operator.queue import Queue
from servewright_operator.reasons import Reason
from servewright_operator.settings import PodDefaults
from servewright_operator.store import Store, is_wish

log = logging.getLogger(__name__)

PASS_TIMEOUT_S = 120.0
# After a pass that wrote: what it led to has mostly happened by then.
_LOOK_AGAIN_S = 0.5


class Prober(Protocol):
    """Who calls the replicas, beside the passes."""

    def tell(self, key: Key, probe: Probe | None, ask_state: Mapping[str, str]) -> None:
        """What to keep asking, and which pods to ask for their state; None and none: nothing."""


class Reconciler:
    """Passes over ModelServices; `work` is one worker."""

    def __init__(
        self,
        *,
        client: Client,
        store: Store,
        queue: Queue,
        observer: Observer,
        applier: Applier,
        events: Events,
        prober: Prober,
        pods: PodDefaults,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client, self._store, self._queue = client, store, queue
        self._observer, self._applier, self._events = observer, applier, events
        self._prober, self._pods, self._now = prober, pods, now
        self._refused: dict[Key, str] = {}  # what the API server said in the last pass
        self._has_complained = False  # of a CRD that is too old, since a status was written

    async def work(self) -> None:
        """Pass after pass, for ever. Whatever goes wrong in one is that one's matter."""
        while True:
            key = await self._queue.get()
            try:
                await self._guarded(key)
            finally:
                self._queue.done(key)

    async def _guarded(self, key: Key) -> None:
        started = time.monotonic()
        context = {"key": str(key), "reconcile": secrets.token_hex(4)}
        try:
            async with asyncio.timeout(PASS_TIMEOUT_S):
                result = await self.reconcile(key, context)
        except ApiError as error:
            result = "gone" if error.is_gone else "error"
            is_expected = error.is_gone or error.status == 409
            if error.reason == Reason.OLD_CRD:
                result, is_expected = "old-crd", True
                self._complain(error)
            level = logging.DEBUG if is_expected else logging.WARNING
            self._fail(key, error.retry_after_s)
            log.log(level, "could not reconcile", extra={**context, "error": str(error)})
        except Exception:
            # A mistake of ours, or TimeoutError: the other ModelServices must not suffer.
            result = "crash"
            self._fail(key, None)
            log.exception("could not reconcile", extra=context)
        else:
            self._queue.succeeded(key)
        metrics.RECONCILES.labels(result).inc()
        metrics.RECONCILE_SECONDS.observe(time.monotonic() - started)

    def _complain(self, error: ApiError) -> None:
        """Of a CRD that is too old; once, for it concerns every ModelService."""
        if not self._has_complained:
            self._has_complained = True
            log.error(error.message)

    def _fail(self, key: Key, retry_after_s: float | None) -> None:
        self._queue.retry(key, at_least_s=retry_after_s or 0.0)

    async def reconcile(self, key: Key, context: Mapping[str, str]) -> str:
        """One pass: whether it "changed" something or not ("same"), or it was "gone".

        Raises ApiError.
        """
        service = self._store.service(key)
        if service is None or "deletionTimestamp" in service["metadata"]:
            # The garbage collector takes the children, by their owner references.
            self._queue.forget(key)
            self._prober.tell(key, None, {})
            self._observer.forget(key)
            self._refused.pop(key, None)
            return "gone"
        now = self._now()
        observed = await self._observer.observe(key, service, now)
        observed = replace(observed, refused=self._refused.get(key, ""))
        plan = decide.plan(observed, self._pods, now)
        if plan.lacks_key:
            observed = await self._observer.with_key(observed, now)
            plan = decide.plan(observed, self._pods, now)
        outcome = await self._bring_about(key, service, observed.children, plan)
        is_told = await self._tell(key, service, plan, outcome)
        self._prober.tell(key, plan.probe, plan.ask_state)
        self._plan_ahead(key, plan, outcome)
        is_changed = bool(outcome.written or outcome.deleted or is_told)
        if is_changed:
            changes = {
                "applied": [_title(child) for child in outcome.written],
                "deleted": [_title(child) for child in outcome.deleted],
                "status": is_told,
                "generation": service["metadata"].get("generation"),
            }
            log.info("reconciled", extra={**context, **changes})
        self._refused.pop(key, None)
        if outcome.refused:
            self._refused[key] = " ".join(error.message for error in outcome.refused)
            raise outcome.refused[0]
        return "changed" if is_changed else "same"

    async def _bring_about(
        self, key: Key, service: Object, children: Sequence[Object], plan: Plan
    ) -> Outcome:
        outcome = Outcome()
        if plan.children is None:
            return outcome
        live = [*children, *self._observer.live_secrets(key, service)]
        lost = self._store.lost(key) | self._observer.lost_secrets(key)
        try:
            await self._applier.bring_about(service, live, plan.children, lost, outcome)
        except ApiError:
            # It may have failed because they are not what we think.
            self._observer.doubt_secrets(key)
            raise
        finally:
            # Also what was done before an error is known from now on.
            if outcome.refused:
                self._observer.doubt_secrets(key)
            for child in outcome.found:
                self._observer.learn(key, child, self._now())
            for child in outcome.written:
                if child["kind"] == kinds.SECRET.name:
                    self._observer.learn(key, child, self._now())
                else:
                    self._store.put(child)
            for child in outcome.deleted:
                if child["kind"] == kinds.SECRET.name:
                    self._observer.forget_secret(key, child["metadata"]["name"])
                else:
                    self._store.forget(child)
        return outcome

    async def _tell(self, key: Key, service: Object, plan: Plan, outcome: Outcome) -> bool:
        """Write status if it differs, then tell Events: whether status was written.

        What was decided before children were written is told by the next pass, which comes
        soon: by then they have something to tell as well, and one write says it all.
        """
        notes = [
            *outcome.notes,
            *(Note("Warning", Reason.REFUSED, each.message) for each in outcome.refused),
        ]
        is_early = bool(outcome.written) and not outcome.refused
        is_new = bool(plan.status != service.get("status", {})) and not is_early
        if is_new:
            self._store.put(await self._write_status(service, plan.status))
            if is_wish(service, self._store.service(key) or {}):
                # The answer held a change that no watch has told of yet, or ever will as news.
                self._queue.add(key)
        self._events.tell(service, notes if is_early else [*notes, *plan.notes])
        return is_new

    async def _write_status(self, service: Object, status: Object) -> Object:
        try:
            written = await self._client.apply_status(service, status)
        except ApiError as error:
            if error.reason == Reason.OLD_CRD:
                note = Note("Warning", Reason.OLD_CRD, error.message)
                self._events.tell(service, [note])
            raise
        self._has_complained = False
        return written

    def _plan_ahead(self, key: Key, plan: Plan, outcome: Outcome) -> None:
        times = [plan.requeue_after_s, outcome.again_in_s]
        if outcome.written or outcome.deleted:
            times.append(_LOOK_AGAIN_S)
        if outcome.found:
            times.append(0.0)
        after_s = min((each for each in times if each is not None), default=None)
        if after_s == 0:
            self._queue.add(key)
        elif after_s is not None:
            self._queue.add_after(key, after_s)


def _title(child: Object) -> str:
    return f"{child['kind']}/{child['metadata']['name']}"
