"""Requests to the API server: JSON in, JSON out, one try each, none without an end.

The client of `kubernetes.aio` brings credentials, TLS and connections; its typed models, which
cost more time than the requests, are left aside. Nothing is tried again here: an ApiError says
when the API server wants to be asked again, and who asked decides.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Self
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import kopf
import orjson
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import (
    ConfigException,
    load_incluster_config,
    load_kube_config,
)

from servewright_api.version import __version__
from servewright_operator import kinds, metrics, names
from servewright_operator.kinds import Kind
from servewright_operator.objects import Object
from servewright_operator.reasons import Reason

# Of a whole request, connecting included. The API server gives up after 60 s itself.
TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0
PAGE = 200  # objects of a LIST's answer: some 80 KB each while they are read
# A LIST starts over when its continuation expired; a cluster busy enough for a third time is ill.
_LIST_TRIES = 3

_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_JSON = "application/json"
# What the API server says (as its own mistake, a 500) of a field that no CRD knows.
_UNKNOWN_FIELD = "field not declared in schema"
_OLD_CRD = (
    "The CRD of ModelServices is older than the operator, which therefore writes no status: "
    "upgrade the chart servewright-crds."
)


class ApiError(Exception):
    """The API server refused, or did not answer (status 0)."""

    def __init__(
        self, status: int, reason: str, message: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason  # CamelCase, such as AlreadyExists
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def is_gone(self) -> bool:
        """What was asked about is not there, or its whole namespace is about to go."""
        return self.status == 404 or "because it is being terminated" in self.message

    @property
    def is_refusal(self) -> bool:
        """Asking again for the same will be refused again: invalid, forbidden, over quota."""
        return self.status in (400, 403, 422) and not self.is_gone


async def load_configuration() -> Configuration:
    """Where the API server is and who we are: by the pod's ServiceAccount, else by KUBECONFIG."""
    configuration = Configuration()
    try:
        load_incluster_config(configuration)  # type: ignore[no-untyped-call]
    except ConfigException:
        await load_kube_config(  # type: ignore[no-untyped-call]
            client_configuration=configuration
        )
    return configuration


class Client:
    """The operator's way to the API server. Close it, or use it as a context."""

    def __init__(self, configuration: Configuration, *, connections: int = 32) -> None:
        self.configuration = configuration
        # Asked before each write; a Lease's holder sets it.
        self.may_write: Callable[[], bool] = lambda: True
        configuration.connection_pool_maxsize = connections
        # Asked for each request, aiohttp looks into the environment in a thread.
        configuration.proxy = configuration.proxy or _proxy(configuration.host)
        configuration.client_session_kwargs = {"trust_env": False}
        self._rest = RESTClientObject(configuration)
        self._timeout = aiohttp.ClientTimeout(total=TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._rest.close()

    async def login(self) -> kopf.ConnectionInfo:
        """The same credentials for kopf, fresh: it asks again when they are refused."""
        configuration = self.configuration
        scheme, _, token = (await self._authorization()).partition(" ")
        return kopf.ConnectionInfo(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            insecure=not configuration.verify_ssl,
            scheme=scheme or None,
            token=token or None,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
            proxy_url=configuration.proxy,
        )

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """One object, None if there is none."""
        try:
            return await self._json("get", kind, kind.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def pages(
        self, kind: Kind, namespace: str | None, query: Mapping[str, str]
    ) -> AsyncIterator[Object]:
        """The pages of a LIST, each as the API server sends it."""
        token = ""
        while True:
            asked = {"limit": str(PAGE), **query, **({"continue": token} if token else {})}
            page = await self._json("list", kind, kind.path(namespace), query=asked)
            yield page
            token = page["metadata"].get("continue", "")
            if not token:
                return

    async def list_all(
        self, kind: Kind, namespace: str | None, *, selector: str = "", fields: str = ""
    ) -> tuple[list[Object], int]:
        """All objects of a namespace, or (None) of the cluster, and as of which resourceVersion."""
        query = {"labelSelector": selector, "fieldSelector": fields}
        query = {key: value for key, value in query.items() if value}
        for left in reversed(range(_LIST_TRIES)):
            objects: list[Object] = []
            version = 0
            try:
                async for page in self.pages(kind, namespace, query):
                    # That of the first page: the later ones are of the same moment.
                    version = version or int(page["metadata"]["resourceVersion"])
                    for item in page["items"]:
                        # Items of a list do not say what they are.
                        item["apiVersion"], item["kind"] = kind.api_version, kind.name
                        objects.append(item)
            except ApiError as error:
                if error.status != 410 or not left:
                    raise
            else:
                return objects, version
        raise AssertionError("the last try returns or raises")

    async def apply(self, manifest: Object, *, force: bool) -> Object:
        """Server-side apply: the object as it is now.

        force: take over fields that others claim; else that is an ApiError 409.
        """
        kind, metadata = kinds.BY_NAME[manifest["kind"]], manifest["metadata"]
        path = kind.path(metadata["namespace"], metadata["name"])
        return await self._apply("apply", kind, path, manifest, force=force)

    async def patch(self, live: Object, changes: Object) -> Object:
        """Merge `changes` into an object: as it is then."""
        kind, metadata = kinds.BY_NAME[live["kind"]], live["metadata"]
        path = kind.path(metadata["namespace"], metadata["name"])
        query = {"fieldManager": names.FIELD_MANAGER}
        return await self._json("patch", kind, path, query=query, body=changes, content_type=_MERGE)

    async def apply_status(self, service: Object, status: Object) -> Object:
        """Server-side apply of a ModelService's status, unless it was made anew meanwhile.

        An ApiError with reason OldCrd: the API server knows less of a status than we have to tell.
        """
        kind, metadata = kinds.MODEL_SERVICE, service["metadata"]
        body = {
            "apiVersion": kind.api_version,
            "kind": kind.name,
            "metadata": {key: metadata[key] for key in ("name", "namespace", "uid")},
            "status": status,
        }
        path = kind.path(metadata["namespace"], metadata["name"], "status")
        try:
            return await self._apply("apply-status", kind, path, body, force=True)
        except ApiError as error:
            if _UNKNOWN_FIELD not in error.message:
                raise
            raise ApiError(error.status, Reason.OLD_CRD, _OLD_CRD) from error

    async def delete(self, live: Object) -> Object | None:
        """Delete this very object, not a namesake made later. What is left of it: None, or it
        waits for its finalizers."""
        kind, metadata = kinds.BY_NAME[live["kind"]], live["metadata"]
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": metadata["uid"]},
            "propagationPolicy": "Background",
        }
        path = kind.path(metadata["namespace"], metadata["name"])
        try:
            answer = await self._json("delete", kind, path, body=body)
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return None if answer.get("kind") == "Status" else answer

    async def create(self, manifest: Object) -> Object:
        """Create an object that must not exist yet."""
        kind = kinds.BY_NAME[manifest["kind"]]
        path = kind.path(manifest["metadata"]["namespace"])
        query = {"fieldManager": names.FIELD_MANAGER}
        return await self._json("create", kind, path, query=query, body=manifest)

    async def replace(self, manifest: Object) -> Object:
        """Replace an object, unless it is no longer of the resourceVersion that it carries."""
        kind, metadata = kinds.BY_NAME[manifest["kind"]], manifest["metadata"]
        path = kind.path(metadata["namespace"], metadata["name"])
        query = {"fieldManager": names.FIELD_MANAGER}
        return await self._json("update", kind, path, query=query, body=manifest)

    async def log_tail(
        self, namespace: str, pod: str, container: str, *, previous: bool, lines: int, limit: int
    ) -> str:
        """The last lines of a container's log, at most `limit` bytes."""
        query = {"container": container, "tailLines": str(lines), "limitBytes": str(limit)}
        if previous:
            query["previous"] = "true"
        path = kinds.POD.path(namespace, pod, "log")
        data = await self._request("get-log", kinds.POD, path, query=query)
        return data.decode(errors="replace")

    async def _apply(
        self, verb: str, kind: Kind, path: str, body: Object, *, force: bool
    ) -> Object:
        query = {"fieldManager": names.FIELD_MANAGER, "force": str(force).lower()}
        return await self._json(verb, kind, path, query=query, body=body, content_type=_APPLY)

    async def _json(self, verb: str, kind: Kind, path: str, **request: Any) -> Object:
        answer = orjson.loads(await self._request(verb, kind, path, **request))
        assert isinstance(answer, dict)
        return answer

    async def _request(
        self,
        verb: str,
        kind: Kind,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = _JSON,
    ) -> bytes:
        if verb not in _READS and not self.may_write():
            raise ApiError(0, "NotLeader", f"no {verb} {path}: another replica may act by now")
        url = self.configuration.host + quote(path) + ("?" + urlencode(query) if query else "")
        headers = {"Content-Type": content_type, "Accept": _JSON, "User-Agent": _AGENT}
        if authorization := await self._authorization():
            headers["Authorization"] = authorization
        started = time.monotonic()
        code = 0
        try:
            response = await self._rest.request(  # type: ignore[no-untyped-call]
                _METHODS[verb], url, headers=headers, body=body, _request_timeout=self._timeout
            )
            data: bytes = await response.read()
            code = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            words = str(error) or type(error).__name__
            raise ApiError(0, "Unreachable", f"no answer to {verb} {path}: {words}") from error
        finally:
            metrics.API_REQUESTS.labels(verb, kind.name, str(code)).inc()
            metrics.API_SECONDS.labels(verb, kind.name).observe(time.monotonic() - started)
        if code >= 400:
            raise _error(code, response.headers, data)
        return data

    async def _authorization(self) -> str:
        settings = await self.configuration.auth_settings()
        return str(settings["BearerToken"]["value"]) if "BearerToken" in settings else ""


_AGENT = f"servewright-operator/{__version__}"
_READS = ("get", "get-log", "list")
_METHODS = {
    "get": "GET",
    "get-log": "GET",
    "list": "GET",
    "create": "POST",
    "update": "PUT",
    "apply": "PATCH",
    "apply-status": "PATCH",
    "patch": "PATCH",
    "delete": "DELETE",
}


def _proxy(url: str) -> str | None:
    """What HTTPS_PROXY and NO_PROXY say about a server."""
    server = urlsplit(url)
    if proxy_bypass(server.hostname or ""):
        return None
    return getproxies().get(server.scheme)


def _error(code: int, headers: Mapping[str, str], data: bytes) -> ApiError:
    """What a Status object says, or whatever else came."""
    try:
        status = orjson.loads(data)
        reason, message = str(status.get("reason") or "Unknown"), str(status["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        reason, message = "Unknown", data[:200].decode(errors="replace")
    after = headers.get("Retry-After", "")
    return ApiError(code, reason, message, float(after) if after.isdecimal() else None)
