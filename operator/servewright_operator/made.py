"""What is known of the Secrets that are made, and what tells that one has to be read now.

They can be neither listed nor watched, so each is read by its name: when its turn comes, and at
once when something hints that it is not as it was. One that no stored revision mounts has not been
made: it is created unread, and read only if the API server says that it exists.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from servewright_operator import foreign, names, pods
from servewright_operator.desired.secrets import wanted
from servewright_operator.last_probe import KEY_REFUSED
from servewright_operator.objects import Object, Observed, PodWords
from servewright_operator.reading import mapping, text, whole

# The longest that one is taken to be as it was last seen.
LATEST = timedelta(minutes=5)
# The shortest, as a part of it: what was read together comes apart turn by turn.
_EARLIEST = 0.8


@dataclass(frozen=True, slots=True)
class Made:
    """A made Secret. Without a value it is one that was not read yet."""

    due: datetime  # when to read it (again)
    live: Object | None = None
    value: str = field(default="", repr=False)  # that it has, or is to have
    was_deleted: bool = False  # by somebody, and it is not back yet


def mounted(seen: Observed) -> set[str]:
    """The made Secrets that stored revisions mount: they exist, unless somebody deleted them."""
    revisions = seen.of_kind("ControllerRevision")
    return set(wanted(mapping(revision, "data", "template") for revision in revisions))


def asked_for(service: Object) -> set[str]:
    """The made Secrets that the spec itself asks for."""
    name, access = text(service, "metadata", "name"), mapping(service, "spec", "access")
    if access.get("mode") == "Open":
        return set()
    found = {names.probe_secret(name)}
    return found if "secretRef" in access else {*found, names.api_keys_secret(name)}


def hints(seen: Observed) -> frozenset[str]:
    """What tells that a made Secret may not be what it was. Each is a reason to look once."""
    told = set()
    if seen.probe is not None and seen.probe.reason in KEY_REFUSED:
        told.add(f"{seen.probe.reason} {seen.probe.time}")
    for pod in seen.pods:
        events = seen.words.get(pods.uid(pod), PodWords()).events
        waiting = [text(pods.state(one, "waiting"), "message") for one in pods.containers(pod)]
        # Which one it is the kubelet does not always say, nor whether one of ours.
        told |= {f"{pods.uid(pod)} {said}" for said in (*events, *waiting) if _is_of_secrets(said)}
    return frozenset(told)


def next_turn(now: datetime, jitter: float) -> datetime:
    """When one that was read `now` is read again. jitter: from 0 to 1."""
    return now + LATEST * (_EARLIEST + (1 - _EARLIEST) * jitter)


def first_turn(service: Object, name: str, now: datetime, jitter: float) -> datetime:
    """When an operator that finds all as it was reads one for the first time.

    The probe's key comes within a probe's interval: the calls go on as they went before.
    """
    interval_s = whole(service, "spec", "probe", "intervalSeconds")
    if interval_s and name == names.probe_secret(text(service, "metadata", "name")):
        return now + min(LATEST, timedelta(seconds=interval_s)) * jitter
    return now + LATEST * jitter


def kept(secret: Object) -> Object:
    """What is held of one: who manages its fields is of use only where somebody else does."""
    if foreign.fields(secret):
        return secret
    metadata = {part: each for part, each in secret["metadata"].items() if part != "managedFields"}
    return {**secret, "metadata": metadata}


def _is_of_secrets(said: str) -> bool:
    return "secret" in said.lower()
