"""Gathers all that a decision about one ModelService may depend on.

Nearly all of it is in the store. Asked for on demand, and remembered: the words of failing pods
(their log and Events), and the made Secrets, which are neither listed nor watched.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from servewright_operator import failures, kinds, names
from servewright_operator.client import ApiError, Client
from servewright_operator.deployed import Deployed
from servewright_operator.desired.secrets import wanted
from servewright_operator.names import Key
from servewright_operator.objects import Object, Observed, PodWords, ProbeRecord, Question
from servewright_operator.reading import mapping, whole
from servewright_operator.store import Store, is_owned

log = logging.getLogger(__name__)

LOG_LINES, LOG_BYTES = 20, 4096
# The API server asks the kubelet, which may be away: status does without rather than wait.
LOG_TIMEOUT_S = 5.0
_EVENTS = 10  # of a pod: the newest tell why
# The longest that a made Secret is taken to be as it was last seen.
SECRETS_MAX_S = 300
_REMEMBERED = 2_000  # pods whose words are kept


@dataclass(slots=True)
class _Made:
    """A generated Secret."""

    live: Object | None
    value: str
    seen_at: datetime
    was_deleted: bool = False  # by somebody, and it is not back yet


class Observer:
    """Sees one ModelService."""

    def __init__(
        self,
        client: Client,
        store: Store,
        probed: Callable[[Key], ProbeRecord | None],
        states: Callable[[Key], Mapping[str, Object]],
    ) -> None:
        self._client, self._store = client, store
        self._probed, self._states = probed, states
        self.has_pod_monitors = False
        self._words: dict[str, tuple[str, PodWords]] = {}  # question's `once` and answer, by uid
        self._made: dict[Key, dict[str, _Made]] = {}  # by the Secret's name

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
        made = await self._secrets(seen, now)
        words = await self._ask(seen, now)
        return replace(
            seen, words=words, secrets={name: secret.value for name, secret in made.items()}
        )

    def live_secrets(self, key: Key, service: Object) -> list[Object]:
        """The made Secrets that exist, as last seen."""
        made = self._made.get(key, {}).values()
        return [one.live for one in made if one.live is not None and is_owned(one.live, service)]

    def lost_secrets(self, key: Key) -> frozenset[tuple[str, str]]:
        """Kind and name of the made Secrets that somebody deleted and that are not back yet."""
        made = self._made.get(key, {})
        return frozenset((kinds.SECRET.name, name) for name in made if made[name].was_deleted)

    def learn(self, key: Key, secret: Object, now: datetime) -> None:
        """A made Secret was written."""
        made = self._made.setdefault(key, {})
        name = secret["metadata"]["name"]
        made[name] = _Made(secret, _value(secret, name), now)

    def forget_secrets(self, key: Key) -> None:
        """Read a ModelService's made Secrets anew."""
        self._made.pop(key, None)

    async def _secrets(self, seen: Observed, now: datetime) -> dict[str, _Made]:
        """Every made Secret that may be wanted, with a fresh value where there is none yet.

        Nothing tells of a change, so each is read again once in a probe's interval; what somebody
        deleted keeps its value.
        """
        templates = (
            mapping(revision, "data", "template") for revision in seen.of_kind("ControllerRevision")
        )
        needed = set(wanted(templates))
        access = seen.service["spec"].get("access", {})
        if access.get("mode") != "Open":
            needed.add(names.probe_secret(seen.key.name))
            if "secretRef" not in access:
                needed.add(names.api_keys_secret(seen.key.name))
        if not needed:
            return {}
        made = self._made.setdefault(seen.key, {})
        interval_s = whole(seen.service, "spec", "probe", "intervalSeconds") or SECRETS_MAX_S
        # A timer of an interval may be early by this clock.
        lasts = 0.9 * timedelta(seconds=min(interval_s, SECRETS_MAX_S))
        for name in sorted(needed):
            before = made.get(name)
            if before is not None and now - before.seen_at < lasts:
                continue
            live = await self._client.get(kinds.SECRET, seen.key.namespace, name)
            was_ours = before is not None and (
                before.was_deleted
                or (before.live is not None and is_owned(before.live, seen.service))
            )
            known = before.value if before is not None and was_ours else ""
            value = _value(live, name) or known or secrets.token_urlsafe(32)
            made[name] = _Made(live, value, now, was_deleted=was_ours and live is None)
        return made

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
