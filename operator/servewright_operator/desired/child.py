"""What every child has in common: its name, its labels, its owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from servewright_operator import kinds, names
from servewright_operator.kinds import Kind
from servewright_operator.names import Key
from servewright_operator.objects import Object


@dataclass(frozen=True, slots=True)
class Owner:
    """The ModelService that the children belong to and go with."""

    key: Key
    uid: str


def child(
    kind: Kind,
    owner: Owner,
    name: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> Object:
    """The beginning of a child, named as its owner unless `name` is given."""
    return {
        "apiVersion": kind.api_version,
        "kind": kind.name,
        "metadata": {
            "name": name or owner.key.name,
            "namespace": owner.key.namespace,
            "labels": {**names.labels(owner.key.name), **(labels or {})},
            "ownerReferences": [
                {
                    "apiVersion": kinds.MODEL_SERVICE.api_version,
                    "kind": kinds.MODEL_SERVICE.name,
                    "name": owner.key.name,
                    "uid": owner.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
    }
