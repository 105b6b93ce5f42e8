"""What others set in the spec of a child, by the API server's own book: managedFields.

A field that somebody sets beside ours (`kubectl set env`, `kubectl rollout restart`) outlives every
server-side apply of ours, and in a pod template it changes what runs. So it is adopted: the book is
rewritten as if we had applied it, and our next apply, which does not say it, drops it. That is one
change: a probe that was swapped from httpGet to exec never has both or none, which the API server
refuses. Labels and annotations of the child itself stay whosever they are, and so does what
mutating webhooks add, which the book does not hold.

Upstream moves fields from client-side to server-side apply in the same way (csaupgrade).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from servewright_operator import names
from servewright_operator.objects import Object

_SPEC = "f:spec"
_ITSELF = "."  # beside the parts of a field: the field as such
_Path = tuple[str, ...]


class ForeignField(NamedTuple):
    """A field that is as it is because of somebody else."""

    path: str  # such as "spec.template.spec.containers[replica].env[NEW]"
    manager: str  # such as "kubectl-set"

    def __str__(self) -> str:
        return f"{self.path} set by {self.manager}"


def fields(live: Object) -> list[ForeignField]:
    """What others, and not we, own of `live`'s spec. Empty where managedFields were dropped."""
    entries = live["metadata"].get("managedFields", ())
    theirs = [entry for entry in entries if _is_foreign(entry)]
    if not theirs:
        return []
    ours: Object = {}
    for entry in entries:
        if entry["manager"] == names.FIELD_MANAGER:
            ours = _union(ours, entry.get("fieldsV1", {}))
    return [
        ForeignField(".".join(path).replace(".[", "["), entry["manager"])
        for entry in theirs
        for path in _beyond({_SPEC: entry["fieldsV1"][_SPEC]}, ours, ())
    ]


def adoption(live: Object) -> Object:
    """The merge patch that makes what others own of `live`'s spec ours to drop.

    It takes the applied manifest's hash away, so that the apply follows, whoever comes to do it.
    """
    ours: Object = {
        "manager": names.FIELD_MANAGER,
        "operation": "Apply",
        "apiVersion": live["apiVersion"],
        "fieldsType": "FieldsV1",
        "fieldsV1": {},
    }
    kept: list[Object] = []
    adopted: Object = {}
    for entry in live["metadata"]["managedFields"]:
        if _is_foreign(entry):
            others = dict(entry["fieldsV1"])
            adopted = _union(adopted, {_SPEC: others.pop(_SPEC)})
            kept.append({**entry, "fieldsV1": others})
        elif _is_applied_by_us(entry):
            ours = entry
        else:
            kept.append(entry)
    said = ours["fieldsV1"]
    ours = {**ours, "fieldsV1": _union(said, _with_whole_items(adopted, said))}
    return {
        "metadata": {
            "resourceVersion": live["metadata"]["resourceVersion"],
            "managedFields": [*kept, ours],
            "annotations": {names.APPLIED_ANNOTATION: None},
        }
    }


def _is_foreign(entry: Object) -> bool:
    return (
        entry["manager"] != names.FIELD_MANAGER
        and "subresource" not in entry
        and _SPEC in entry.get("fieldsV1", ())
    )


def _is_applied_by_us(entry: Object) -> bool:
    return (
        entry["manager"] == names.FIELD_MANAGER
        and entry["operation"] == "Apply"
        and "subresource" not in entry
    )


def _union(one: Object, other: Object) -> Object:
    return {**one, **{key: _union(one.get(key, {}), inner) for key, inner in other.items()}}


def _with_whole_items(theirs: Object, ours: Object) -> Object:
    """`theirs`, and of a list's item that is not ours all of it.

    Without its image, which somebody changed, a webhook's container would be refused.
    """
    return {
        key: {
            **({_ITSELF: {}} if key.startswith("k:") and key not in ours else {}),
            **_with_whole_items(inner, ours.get(key, {})),
        }
        for key, inner in theirs.items()
    }


def _beyond(theirs: Object, ours: Object, path: _Path) -> Iterator[_Path]:
    """Where `theirs` leaves `ours`."""
    for key, inner in theirs.items():
        if key == _ITSELF:
            continue
        here = (*path, _step(key))
        if key in ours:
            yield from _beyond(inner, ours[key], here)
        else:
            yield _narrowed(inner, here)


def _narrowed(owned: Object, path: _Path) -> _Path:
    """Down to one item, or as far as one way leads: not `annotations` but the one of them."""
    inner = [key for key in owned if key != _ITSELF]
    if len(inner) != 1 or path[-1].startswith("["):
        return path
    return _narrowed(owned[inner[0]], (*path, _step(inner[0])))


def _step(key: str) -> str:
    """A key of managedFields (f:FIELD, k:{KEYS}, v:VALUE, i:INDEX) as part of a path."""
    kind, _, rest = key.partition(":")
    if kind == "f":
        return rest
    value: Any = json.loads(rest)
    return f"[{'/'.join(map(str, value.values())) if isinstance(value, dict) else value}]"
