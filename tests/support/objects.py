"""Objects of a real API server as plain JSON: applied, created, edited, deleted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from kubernetes.config import new_client_from_config

from servewright_operator import kinds, names
from servewright_operator.objects import Object
from support.apiserver import ApiServer

TIMEOUT_S = 30.0


class Refused(AssertionError):
    """The API server said no."""


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
        return self._request("POST", kind.path(namespace), {"dryRun": "All"}, manifest)

    def edit(self, live: Object, changes: Mapping[str, Any]) -> Object:
        """What somebody else does, as a merge patch."""
        content_type = "application/merge-patch+json"
        return self._ask("PATCH", live, {"fieldManager": "somebody"}, content_type, changes)

    def delete(self, live: Object) -> None:
        """Delete it, and then what it owns."""
        self._ask("DELETE", live, {"propagationPolicy": "Background"})

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
        return self._request(method, path, query, body, content_type)

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Any,
        content_type: str = "application/json",
    ) -> Object:
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
            raise Refused(f"{answer.status} {data['message']}")
        return data
