"""Makes the children be as planned: applies what differs, deletes what is not wanted.

A child that already holds all that is desired costs no request. What somebody else edited, added
or deleted is put right again, at once and then less and less often: another controller that wants
it otherwise must not be fought at full speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from servewright_operator import foreign, holding, kinds, metrics
from servewright_operator.client import ApiError, Client
from servewright_operator.foreign import ForeignField
from servewright_operator.objects import Note, Object
from servewright_operator.reasons import Reason
from servewright_operator.store import is_owned

_REPAIR_AGAIN_S = 1.0  # twice as long after each repair
_REPAIR_MAX_S = 300.0
_REPAIR_FORGOTTEN_S = 900.0  # without another one

Name = tuple[str, str]  # kind, name


@dataclass(slots=True)
class Outcome:
    """What a pass over the children did. Nothing: all of it is empty."""

    written: list[Object] = field(default_factory=list)  # as the API server answered
    found: list[Object] = field(default_factory=list)  # Secrets, in the place of those to create
    deleted: list[Object] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    refused: list[ApiError] = field(default_factory=list)  # the other children were applied
    again_in_s: float | None = None  # when a repair that has to wait is due


@dataclass(slots=True)
class _Repairs:
    count: int
    last: float


class Applier:
    """Applies and prunes children."""

    def __init__(self, client: Client, clock: Callable[[], float]) -> None:
        self._client, self._clock = client, clock
        self._repairs: dict[tuple[str, Name], _Repairs] = {}  # by the owner's uid

    async def bring_about(
        self,
        owner: Object,
        live: Sequence[Object],
        desired: Iterable[Object],
        lost: Iterable[Name],
        outcome: Outcome,
    ) -> None:
        """Apply `desired` over the owner's `live` children and delete the others.

        lost: children that somebody deleted lately. outcome: is filled, up to an ApiError if one
        is raised: where trying again may help.
        """
        known = {_name(child): child for child in live}
        lost = set(lost)
        wanted = set()
        for child in desired:
            wanted.add(_name(child))
            try:
                await self._apply(owner, known, child, _name(child) in lost, outcome)
            except ApiError as error:
                if not error.is_refusal and error.reason != _NOT_OURS:
                    raise
                outcome.refused.append(error)
        if not outcome.refused:
            for name, child in known.items():
                if name not in wanted:
                    await self._client.delete(child)
                    outcome.deleted.append(child)

    async def _apply(
        self,
        owner: Object,
        known: Mapping[Name, Object],
        child: Object,
        was_lost: bool,
        outcome: Outcome,
    ) -> None:
        before = known.get(_name(child))
        theirs = [] if before is None else foreign.fields(before)
        if before is not None and not theirs and holding.holds(before, child):
            return
        edits = [] if before is None else _edits(before, child, theirs)
        if was_lost or edits:
            wait_s = self._wait_s(owner, _name(child))
            if wait_s > 0:
                outcome.again_in_s = min(wait_s, outcome.again_in_s or wait_s)
                return
        if before is not None and theirs:
            before = await self._client.patch(before, foreign.adoption(before))
        manifest = holding.with_hash(child)
        after, is_found = await self._write(owner, manifest, is_known=before is not None)
        if is_found:
            outcome.found.append(after)
            return
        if before is not None and _version(before) == _version(after):
            return  # nothing was different after all
        outcome.written.append(after)
        if was_lost or edits:
            self._remember(owner, _name(child))
            metrics.REPAIRS.labels(child["kind"]).inc()
            what = (
                "was deleted; it is made again"
                if was_lost
                else f"had {', '.join(edits)}; it is put back"
            )
            message = f"{child['kind']} {child['metadata']['name']} {what}."
            outcome.notes.append(Note("Normal", Reason.REPAIRED, message))

    async def _write(
        self, owner: Object, manifest: Object, *, is_known: bool
    ) -> tuple[Object, bool]:
        """Apply a child: as it is then, and whether it was found rather than written. A namesake
        that is not ours stays as it is; a child that we lost sight of is taken up again, but for
        a Secret: its value counts, and the next pass goes by that."""
        if is_known:
            return await self._client.apply(manifest, force=True), False
        is_secret = manifest["kind"] == kinds.SECRET.name
        try:
            if is_secret:
                return await self._client.create(manifest), False
            return await self._client.apply(manifest, force=False), False
        except ApiError as error:
            if error.status != 409:
                raise
            conflict = error
        kind, metadata = kinds.BY_NAME[manifest["kind"]], manifest["metadata"]
        found = await self._client.get(kind, metadata["namespace"], metadata["name"])
        if found is not None and not is_owned(found, owner):
            raise ApiError(
                409,
                _NOT_OURS,
                f"{kind.name} {metadata['name']} exists and does not belong to this ModelService: "
                "delete it, or give the ModelService another name.",
            )
        if not is_secret:
            return await self._client.apply(manifest, force=True), False
        if found is None:  # it went in between
            raise conflict
        return found, True

    def _wait_s(self, owner: Object, name: Name) -> float:
        """How long a repair has to wait, for there were others."""
        past = self._repairs.get((owner["metadata"]["uid"], name))
        if past is None:
            return 0.0
        pause = min(_REPAIR_AGAIN_S * 2.0 ** min(past.count - 1, 10), _REPAIR_MAX_S)
        return past.last + pause - self._clock()

    def _remember(self, owner: Object, name: Name) -> None:
        now = self._clock()
        old = [
            which for which, past in self._repairs.items() if now - past.last > _REPAIR_FORGOTTEN_S
        ]
        for which in old:
            del self._repairs[which]
        past = self._repairs.setdefault((owner["metadata"]["uid"], name), _Repairs(0, now))
        past.count, past.last = past.count + 1, now


_NOT_OURS = "NotOurs"


def _edits(live: Object, desired: Object, theirs: Sequence[ForeignField]) -> list[str]:
    """What somebody else did to a child."""
    changed = holding.difference(live, desired)
    if changed is None or any(changed.startswith(field.path) for field in theirs):
        return [str(field) for field in theirs]
    return [f"{changed} changed", *map(str, theirs)]


def _name(child: Object) -> Name:
    return child["kind"], child["metadata"]["name"]


def _version(child: Object) -> str:
    version: str = child["metadata"]["resourceVersion"]
    return version
