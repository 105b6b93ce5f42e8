"""A namespace in which somebody uses ModelServices, and looks at what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from servewright_operator import kinds, names
from servewright_operator.kinds import Kind
from servewright_operator.objects import Object
from servewright_operator.reading import condition
from support.objects import Objects
from support.operators import make_service

USER = "somebody"
CHILDREN = (*kinds.CHILDREN, kinds.SECRET)


class Place:
    """What a person does in a namespace, and sees."""

    def __init__(self, objects: Objects, namespace: str) -> None:
        self.objects, self.namespace = objects, namespace

    def serve(self, name: str = "m", **spec: Any) -> Object:
        """Apply a ModelService. Its access is open unless `spec` says otherwise."""
        manifest = make_service(name, **spec)
        manifest["metadata"]["namespace"] = self.namespace
        return self.objects.apply(manifest, manager=USER)

    def edit(self, kind: Kind, name: str, changes: Mapping[str, Any]) -> Object:
        """A merge patch."""
        return self.objects.edit(self._named(kind, name), changes)

    def delete(self, kind: Kind, name: str) -> None:
        self.objects.delete(self._named(kind, name))

    def leave(self) -> None:
        """Delete every ModelService."""
        for service in self.objects.all(kinds.MODEL_SERVICE, self.namespace):
            self.objects.delete(service)

    def touch(self, name: str = "m") -> None:
        """Change nothing that matters of a ModelService: a pass is made over it."""
        version = self.get(kinds.MODEL_SERVICE, name)["metadata"]["resourceVersion"]
        touched = {"metadata": {"annotations": {"example.com/touched": version}}}
        self.edit(kinds.MODEL_SERVICE, name, touched)

    def find(self, kind: Kind, name: str) -> Object | None:
        return self.objects.find(kind, self.namespace, name)

    def get(self, kind: Kind, name: str = "m") -> Object:
        found = self.find(kind, name)
        assert found is not None, f"no {kind.name} {name}"
        return found

    def children(self, name: str = "m") -> dict[tuple[str, str], Object]:
        """The children of a ModelService, by kind and name."""
        selector = f"{names.SERVICE_LABEL}={name}"
        return {
            (kind.name, child["metadata"]["name"]): child
            for kind in CHILDREN
            for child in self.objects.all(kind, self.namespace, selector=selector)
        }

    def pods(self, name: str = "m") -> list[Object]:
        selector = f"{names.SERVICE_LABEL}={name}"
        return self.objects.all(kinds.POD, self.namespace, selector=selector)

    def versions(self, name: str = "m") -> dict[tuple[str, str], str]:
        """The resourceVersions of a ModelService and its children."""
        service = self.get(kinds.MODEL_SERVICE, name)
        found = {(service["kind"], name): service, **self.children(name)}
        return {which: each["metadata"]["resourceVersion"] for which, each in found.items()}

    def events(self, reason: str, name: str = "m") -> list[str]:
        """The messages of a ModelService's Events of a reason."""
        fields = f"involvedObject.name={name},reason={reason}"
        found = self.objects.all(kinds.EVENT, self.namespace, fields=fields)
        return [event["message"] for event in found]

    def status(self, name: str = "m") -> Object:
        """Of a ModelService; empty as long as there is none."""
        status: Object = self.get(kinds.MODEL_SERVICE, name).get("status", {})
        return status

    def condition(self, kind: str, name: str = "m") -> Object:
        return condition(self.get(kinds.MODEL_SERVICE, name), kind)

    def _named(self, kind: Kind, name: str) -> Object:
        metadata = {"namespace": self.namespace, "name": name}
        return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata}
