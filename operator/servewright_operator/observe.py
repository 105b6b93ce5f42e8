"""Gathers all that a decision about one ModelService may depend on.

Nearly all of it is in the store. Asked for on demand, and remembered: the words of failing pods
(their log and Events), and the made Secrets, which are neither listed nor watched.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import random
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from servewright_operator import failures, kinds, names
from servewright_operator.client import ApiError, Client
from servewright_operator.deployed import Deployed
from servewright_operator.made import (
    Made,
    asked_for,
    first_turn,
    hints,
    kept,
    mounted,
    next_turn,
)
from servewright_operator.names import Key
from servewright_operator.objects import Object, Observed, PodWords, ProbeRecord, Question
from servewright_operator.store import Store, is_owned

log = logging.getLogger(__name__)

LOG_LINES, LOG_BYTES = 20, 4096
# The API server asks the kubelet, which may be away: status does without rather than wait.
LOG_TIMEOUT_S = 5.0
_EVENTS = 10  # of a pod: the newest tell why
_REMEMBERED = 2_000  # pods whose words are kept
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(slots=True)
class _Known:
    """The made Secrets of one ModelService, by name, and the hints that were followed."""

    made: dict[str, Made] = field(default_factory=dict)
    heeded: frozenset[str] = frozenset()


class Observer:
    """Sees one ModelService."""

    def __init__(
        self,
        client: Client,
        store: Store,
        probed: Callable[[Key], ProbeRecord | None],
        states: Callable[[Key], Mapping[str, Object]],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._client, self._store = client, store
        self._probed, self._states, self._jitter = probed, states, jitter
        self.has_pod_monitors = False
        self._words: dict[str, tuple[str, PodWords]] = {}  # question's `once` and answer, by uid
        self._known: dict[Key, _Known] = {}

    async def observe(self, key: Key, service: Object, now: datetime) -> Observed:
        """What there is. Raises ApiError when a made Secret cannot be read."""
        children = self._store.children(service)
        seen = Observed(
            key=key,
            service=service,
            children=[child for child in children if child["kind"] != kinds.POD.name],
            pods=self._store.pods(key),
            states=self._states(key),
            probe=self._probed(key),
            has_pod_monitors=self.has_pod_monitors,
        )
        seen = replace(seen, words=await self._ask(seen, now))
        return await self._with_secrets(seen, now)

    async def with_key(self, seen: Observed, now: datetime) -> Observed:
        """The same with the operator's own key, which could wait until now."""
        known = self._known.setdefault(seen.key, _Known())
        await self._read(seen, known, names.probe_secret(seen.key.name), now)
        return _told(seen, known)

    def live_secrets(self, key: Key, service: Object) -> list[Object]:
        """The made Secrets that exist, as last seen."""
        made = self._made(key).values()
        return [one.live for one in made if one.live is not None and is_owned(one.live, service)]

    def lost_secrets(self, key: Key) -> frozenset[tuple[str, str]]:
        """Kind and name of the made Secrets that somebody deleted and that are not back yet."""
        made = self._made(key)
        return frozenset((kinds.SECRET.name, name) for name in made if made[name].was_deleted)

    def learn(self, key: Key, secret: Object, now: datetime) -> None:
        """A made Secret was written, or found in its place."""
        name = secret["metadata"]["name"]
        made = self._known.setdefault(key, _Known()).made
        value = _value(secret, name) or (made[name].value if name in made else "")
        made[name] = Made(next_turn(now, self._jitter()), kept(secret), value)

    def doubt_secrets(self, key: Key) -> None:
        """Read a ModelService's made Secrets in the next pass."""
        made = self._made(key)
        made.update({name: replace(one, due=_LONG_AGO) for name, one in made.items()})

    def forget_secret(self, key: Key, name: str) -> None:
        """A made Secret was deleted, as it should be."""
        self._made(key).pop(name, None)

    def forget(self, key: Key) -> None:
        """A ModelService is gone."""
        self._known.pop(key, None)

    def _made(self, key: Key) -> dict[str, Made]:
        return self._known[key].made if key in self._known else {}

    async def _with_secrets(self, seen: Observed, now: datetime) -> Observed:
        """With every made Secret that may be wanted, as far as its value is known.

        Without news from an earlier pass those of stored revisions are taken to be there.
        """
        stored = mounted(seen)
        needed = stored | asked_for(seen.service)
        if not needed and seen.key not in self._known:
            return seen
        known = self._known.setdefault(seen.key, _Known())
        for name in sorted(needed - known.made.keys()):
            if name in stored:
                known.made[name] = Made(first_turn(seen.service, name, now, self._jitter()))
            else:
                known.made[name] = Made(next_turn(now, self._jitter()), value=_fresh_value())
        told = hints(seen)
        has_news = bool(told - known.heeded)
        for name, made in sorted(known.made.items()):
            # One that is wanted no more is deleted; for that it must have been seen.
            is_stray = name not in needed and not made.value
            if has_news or is_stray or made.due <= now:
                await self._read(seen, known, name, now)
                if name not in needed and known.made[name].live is None:
                    del known.made[name]
        known.heeded = told
        return _told(seen, known)

    async def _read(self, seen: Observed, known: _Known, name: str, now: datetime) -> None:
        """See one made Secret as it is. What somebody deleted keeps its value."""
        live = await self._client.get(kinds.SECRET, seen.key.namespace, name)
        before = known.made.get(name, Made(now))
        was_there = before.live is not None and is_owned(before.live, seen.service)
        value = before.value if was_there or before.live is None else ""
        known.made[name] = Made(
            due=next_turn(now, self._jitter()),
            live=None if live is None else kept(live),
            value=_value(live, name) or value or _fresh_value(),
            was_deleted=live is None and (was_there or before.was_deleted),
        )

    async def _ask(self, seen: Observed, now: datetime) -> dict[str, PodWords]:
        """The words of pods that fail or hang."""
        told = {}
        for question in failures.questions(seen, Deployed.of(seen, now), now):
            once, words = self._words.pop(question.uid, ("", PodWords()))
            if once != question.once:
                words = await self._words_of(seen.key.namespace, question)
            told[question.uid] = words
            self._words[question.uid] = question.once, words
        while len(self._words) > _REMEMBERED:
            del self._words[next(iter(self._words))]
        return told

    async def _words_of(self, namespace: str, question: Question) -> PodWords:
        tail, events = "", tuple[str, ...]()
        try:
            if question.container is not None:
                async with asyncio.timeout(LOG_TIMEOUT_S):
                    tail = await self._client.log_tail(
                        namespace,
                        question.pod,
                        question.container,
                        previous=question.previous,
                        lines=LOG_LINES,
                        limit=LOG_BYTES,
                    )
        except (ApiError, TimeoutError) as error:
            # The log of a life that left none, a kubelet that is away: status does without.
            log.debug("no log", extra={"pod": question.pod, "error": str(error)})
        try:
            if question.events:
                events = await self._events_of(namespace, question)
        except ApiError as error:
            log.debug("no events", extra={"pod": question.pod, "error": str(error)})
        return PodWords(tail, events)

    async def _events_of(self, namespace: str, question: Question) -> tuple[str, ...]:
        fields = f"involvedObject.uid={question.uid},type=Warning"
        found, _ = await self._client.list_all(kinds.EVENT, namespace, fields=fields)
        found.sort(key=_time)
        return tuple(f"{one.get('reason')}: {one.get('message')}" for one in found[-_EVENTS:])


def _told(seen: Observed, known: _Known) -> Observed:
    made = known.made
    return replace(
        seen,
        secrets={name: one.value for name, one in made.items() if one.value},
        secrets_due=min((one.due for one in made.values()), default=None),
    )


def _fresh_value() -> str:
    return secrets.token_urlsafe(32)


def _value(secret: Object | None, name: str) -> str:
    """A made Secret's value; empty where it has none."""
    data = {} if secret is None else secret.get("data") or {}
    key = names.PROBE_KEY if name.endswith(names.probe_secret("")) else names.API_KEY
    try:
        return base64.b64decode(data.get(key, "")).decode()
    except ValueError:
        return ""


def _time(event: Object) -> str:
    """When an Event last happened, by whichever of its fields says so."""
    series = event.get("series") or {}
    return str(
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp")
        or ""
    )
