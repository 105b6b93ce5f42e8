"""Objects of a real API server as plain JSON: applied, created, edited, deleted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

from kubernetes.config import new_client_from_config

from servewright_operator import kinds, names
from servewright_operator.objects import Object
from support.apiserver import ApiServer

TIMEOUT_S = 30.0


class Refused(AssertionError):
    """The API server said no."""


class NotFound(Refused):
    """There is no such object."""


class Objects:
    """What an admin does, one request each. Raises Refused."""

    def __init__(self, server: ApiServer) -> None:
        self._client = new_client_from_config(str(server.kubeconfig))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close every connection."""
        self._client.rest_client.pool_manager.clear()

    def apply(self, manifest: Object, *, manager: str = names.FIELD_MANAGER) -> Object:
        """Server-side apply by force."""
        query = {"fieldManager": manager, "force": "true"}
        return self._ask("PATCH", manifest, query, "application/apply-patch+yaml")

    def would_create(self, manifest: Object) -> Object:
        """What a POST of it would give, defaults included. Nothing is stored."""
        kind, namespace = kinds.BY_NAME[manifest["kind"]], manifest["metadata"]["namespace"]
        return self.request("POST", kind.path(namespace), {"dryRun": "All"}, manifest)

    def edit(self, live: Object, changes: Mapping[str, Any]) -> Object:
        """What somebody else does, as a merge patch."""
        content_type = "application/merge-patch+json"
        return self._ask("PATCH", live, {"fieldManager": "somebody"}, content_type, changes)

    def delete(self, live: Object) -> None:
        """Delete it, and then what it owns."""
        self._ask("DELETE", live, {"propagationPolicy": "Background"})

    def find(self, kind: kinds.Kind, namespace: str | None, name: str) -> Object | None:
        """One object, None if there is none."""
        try:
            return self.request("GET", kind.path(namespace, name))
        except NotFound:
            return None

    def all(
        self, kind: kinds.Kind, namespace: str | None, *, selector: str = "", fields: str = ""
    ) -> list[Object]:
        """The objects of a namespace, or (None) of the cluster."""
        query = {"labelSelector": selector, "fieldSelector": fields}
        items: list[Object] = self.request("GET", kind.path(namespace), query)["items"]
        return [{"apiVersion": kind.api_version, "kind": kind.name, **item} for item in items]

    def _ask(
        self,
        method: str,
        named: Object,
        query: Mapping[str, str],
        content_type: str = "application/json",
        body: Any = None,
    ) -> Object:
        metadata = named["metadata"]
        path = kinds.BY_NAME[named["kind"]].path(metadata["namespace"], metadata["name"])
        body = named if body is None and method == "PATCH" else body
        return self.request(method, path, query, body, content_type)

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] = MappingProxyType({}),
        body: Any = None,
        content_type: str = "application/json",
    ) -> Object:
        """Whatever else: what the API server answers."""
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        if token := self._client.configuration.auth_settings().get("BearerToken"):
            headers["Authorization"] = token["value"]
        answer = self._client.rest_client.pool_manager.request(
            method,
            f"{self._client.configuration.host}{path}?{urlencode(query)}",
            body=None if body is None else json.dumps(body),
            headers=headers,
            timeout=TIMEOUT_S,
        )
        data: Object = json.loads(answer.data)
        if answer.status >= 400:
            refusal = NotFound if answer.status == 404 else Refused
            raise refusal(f"{answer.status} {data['message']}")
        return data
