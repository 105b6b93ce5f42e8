"""A small Kubernetes API server: keeps objects, streams changes, and fails on demand.

It knows what the operator and kopf ask of an API server (discovery, LIST by pages, watches,
server-side apply by one owner a field, preconditions) and nothing of what makes Kubernetes: no
schema, no defaults, no controllers, no garbage collection. Every request is recorded, so that tests
count them. It answers in a thread of its own, for kopf cancels tasks of its loop that it did not
start.
"""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiohttp import web

from support import fake_kinds

Object = dict[str, Any]
RELEASED_WITHIN_S = 30.0


class Request(NamedTuple):
    """What was asked, and how it was answered."""

    verb: str
    kind: str
    namespace: str
    name: str
    code: int


@dataclass
class Fault:
    """What happens to requests that match, instead of their answer or before it."""

    verb: str  # "*": any
    kind: str
    code: int = 0  # 0: answered as usual
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    released: threading.Event | None = None  # it lasts until this is set
    message: str = "a fault of the test"


class _Refused(Exception):
    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message


class _Watch(NamedTuple):
    kind: str
    namespace: str
    selector: dict[str, str]
    events: asyncio.Queue[Object | None]  # None: the stream is cut


class FakeKubernetes:
    """Holds objects; everything but `url` may be used from any thread."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.on_write: Callable[[Object], None] = lambda _: None
        self._lock = threading.RLock()
        self._objects: dict[tuple[str, str, str], Object] = {}
        self._applied: dict[tuple[str, str, str, str], Object] = {}  # last manifest, by manager
        self._history: list[tuple[int, str, Object]] = []  # version, event type, object
        self._oldest = 0  # watches that begin before it are told 410
        self._version = 100
        self._uids = 0
        self._watches: list[_Watch] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    # What tests do

    def put(self, new: Object) -> Object:
        """Create or replace an object, as somebody else would: what it became."""
        with self._lock:
            metadata = new["metadata"]
            where = (new["kind"], metadata["namespace"], metadata["name"])
            old = self._objects.get(where)
            return copy.deepcopy(self._store(where, old, copy.deepcopy(new)))

    def change(self, kind: str, name: str, change: Callable[[Object], None]) -> Object:
        """Edit an object of the namespace `default`."""
        with self._lock:
            new = self.get(kind, name)
            assert new is not None
            change(new)
            return self.put(new)

    def get(self, kind: str, name: str, namespace: str = "default") -> Object | None:
        """An object as it is."""
        with self._lock:
            return copy.deepcopy(self._objects.get((kind, namespace, name)))

    def all(self, kind: str) -> list[Object]:
        """All objects of a kind."""
        with self._lock:
            return [copy.deepcopy(o) for (k, _, _), o in self._objects.items() if k == kind]

    def remove(
        self, kind: str, name: str, namespace: str = "default", *, told: bool = True
    ) -> None:
        """Delete an object; not `told`: no watch hears of it, ever."""
        with self._lock:
            self._delete((kind, namespace, name), told=told)

    def count(self, *verbs: str) -> Counter[tuple[str, str]]:
        """How often each verb (of `verbs`, if given) was asked of each kind."""
        with self._lock:
            asked = [(each.verb, each.kind) for each in self.requests]
        return Counter(pair for pair in asked if not verbs or pair[0] in verbs)

    def writes(self) -> list[Request]:
        """Every request that is not to look, but for those about the Lease."""
        with self._lock:
            return [
                each
                for each in self.requests
                if each.verb not in ("get", "list", "watch", "get-log") and each.kind != "Lease"
            ]

    def cut_watches(self, *, gone: bool = False) -> None:
        """End every watch; gone: and say 410 to those that want to go on from where they were."""
        with self._lock:
            if gone:
                self._oldest = self._version = self._version + 1
            for watch in self._watches:
                self._tell(watch, None)

    # How it answers

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path.strip("/").split("/")
        if path[0] not in ("api", "apis"):
            return web.json_response({"gitVersion": "v1.37.0"})
        path = path[2:] if path[0] == "api" else path[3:]
        if not path:
            return web.json_response(fake_kinds.discovery(request.path))
        namespace = ""
        if path[0] == "namespaces" and len(path) > 2:
            namespace, path = path[1], path[2:]
        if path[0] not in fake_kinds.KIND:
            return _status(404, "NotFound", f"no such resource: {request.path}")
        kind, name = fake_kinds.KIND[path[0]], path[1] if len(path) > 1 else ""
        part = path[2] if len(path) > 2 else ""
        verb = _verb(request, name, part)
        for fault in [each for each in self.faults if each.times > 0]:
            if fault.verb in ("*", verb) and fault.kind in ("*", kind):
                fault.times -= 1
                await asyncio.sleep(fault.delay_s)
                if fault.released is not None:
                    assert await asyncio.to_thread(fault.released.wait, RELEASED_WITHIN_S)
                if fault.code:
                    self._record(verb, kind, namespace, name, fault.code)
                    answer = _status(fault.code, "Injected", fault.message)
                    answer.headers.update(fault.headers)
                    return answer
        if verb == "watch":
            self._record(verb, kind, namespace, name, 200)
            return await self._stream(request, kind, namespace)
        body = await request.json() if request.can_read_body else {}
        try:
            with self._lock:
                answer = self._handle(verb, (kind, namespace, name), request.query, body)
        except _Refused as refused:
            answer = _status(refused.code, refused.reason, refused.message)
        self._record(verb, kind, namespace, name, answer.status)
        return answer

    def _record(self, verb: str, kind: str, namespace: str, name: str, code: int) -> None:
        with self._lock:
            self.requests.append(Request(verb, kind, namespace, name, code))

    def _handle(
        self, verb: str, where: tuple[str, str, str], query: Any, body: Object
    ) -> web.Response:
        old = self._objects.get(where)
        if verb == "list":
            return self._list(where, query)
        if verb == "get-log":
            return web.Response(text="the last line\n")
        if verb == "create":
            where = (where[0], where[1], body["metadata"]["name"])
            if where in self._objects:
                raise _Refused(409, "AlreadyExists", f"{where} exists")
            return web.json_response(self._store(where, None, body), status=201)
        if verb == "apply":
            return web.json_response(self._apply(where, old, body, query))
        if old is None:
            raise _Refused(404, "NotFound", f"{where} not found")
        if verb == "get":
            return web.json_response(old)
        if verb == "delete":
            wanted = body.get("preconditions", {}).get("uid", old["metadata"]["uid"])
            if wanted != old["metadata"]["uid"]:
                raise _Refused(409, "Conflict", "the uid is another")
            self._delete(where)
            return web.json_response({"kind": "Status", "status": "Success"})
        if verb == "update":
            if body["metadata"].get("resourceVersion") != old["metadata"]["resourceVersion"]:
                raise _Refused(409, "Conflict", "the object has been modified")
            return web.json_response(self._store(where, old, body))
        assert verb == "apply-status", verb
        if body["metadata"].get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
            raise _Refused(409, "Conflict", "the uid is another")
        return web.json_response(self._store(where, old, {**old, "status": body["status"]}))

    def _apply(
        self, where: tuple[str, str, str], old: Object | None, body: Object, query: Any
    ) -> Object:
        manager = (*where, query["fieldManager"])
        before = self._applied.get(manager, {})
        if old is not None and query.get("force") != "true" and not before:
            raise _Refused(409, "Conflict", "Apply failed with 1 conflict")
        new = _merge(_without(copy.deepcopy(old or {}), before, body), body)
        stored = self._store(where, old, new)
        self._applied[manager] = copy.deepcopy(body)
        return stored

    def _store(self, where: tuple[str, str, str], old: Object | None, new: Object) -> Object:
        metadata = new["metadata"] = dict(new["metadata"])
        if old is None:
            self._uids += 1
            metadata.setdefault("uid", f"uid-{self._uids}")
            metadata["generation"] = 1
            metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        else:
            for part in ("uid", "generation", "resourceVersion", "creationTimestamp"):
                metadata[part] = old["metadata"][part]
            if new == old:
                return old
            if new.get("spec") != old.get("spec"):
                metadata["generation"] += 1
        self._version += 1
        metadata["resourceVersion"] = str(self._version)
        self._objects[where] = new
        self._publish("ADDED" if old is None else "MODIFIED", new)
        self.on_write(new)
        return new

    def _delete(self, where: tuple[str, str, str], *, told: bool = True) -> None:
        gone = self._objects.pop(where)
        for manager in [each for each in self._applied if each[:3] == where]:
            del self._applied[manager]
        self._version += 1
        gone = {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self._version)}}
        if told:
            self._publish("DELETED", gone)

    def _publish(self, kind: str, what: Object) -> None:
        what = copy.deepcopy(what)
        self._history.append((self._version, kind, what))
        for watch in self._watches:
            if _matches(what, watch.kind, watch.namespace, watch.selector):
                self._tell(watch, {"type": kind, "object": what})

    def _tell(self, watch: _Watch, event: Object | None) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(watch.events.put_nowait, event)

    def _list(self, where: tuple[str, str, str], query: Any) -> web.Response:
        kind, namespace, _ = where
        selector = _selector(query.get("labelSelector", ""))
        found = [o for o in self._objects.values() if _matches(o, kind, namespace, selector)]
        begin, limit = int(query.get("continue") or 0), int(query.get("limit") or 0) or len(found)
        metadata = {"resourceVersion": str(self._version)}
        if begin + limit < len(found):
            metadata["continue"] = str(begin + limit)
        page = [{**each, "kind": None} for each in found[begin : begin + limit]]
        for each in page:  # items of a list do not tell their kind
            del each["kind"]
        return web.json_response({"kind": f"{kind}List", "metadata": metadata, "items": page})

    async def _stream(self, request: web.Request, kind: str, namespace: str) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion") or 0)
        selector = _selector(request.query.get("labelSelector", ""))
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        watch = _Watch(kind, namespace, selector, asyncio.Queue())
        with self._lock:
            if since < self._oldest:
                error = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
                watch.events.put_nowait({"type": "ERROR", "object": error})
                watch.events.put_nowait(None)
            for version, event, what in self._history:
                if version > since and _matches(what, kind, namespace, selector):
                    watch.events.put_nowait({"type": event, "object": what})
            self._watches.append(watch)
        try:
            while (told := await watch.events.get()) is not None:
                await response.write(json.dumps(told).encode() + b"\n")
        finally:
            with self._lock:
                self._watches.remove(watch)
        return response

    # Life

    async def _serve(self, started: threading.Event, ended: asyncio.Event) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        started.set()
        await ended.wait()
        self.cut_watches()
        await runner.cleanup()


@contextmanager
def fake_kubernetes() -> Iterator[FakeKubernetes]:
    """One that listens on a free port of loopback."""
    fake, started, ended = FakeKubernetes(), threading.Event(), asyncio.Event()

    def serve() -> None:
        with asyncio.Runner() as runner:
            fake._loop = runner.get_loop()
            runner.run(fake._serve(started, ended))

    thread = threading.Thread(target=serve, name="fake-kubernetes")
    thread.start()
    try:
        assert started.wait(10)
        yield fake
    finally:
        assert fake._loop is not None
        fake._loop.call_soon_threadsafe(ended.set)
        thread.join()


def _verb(request: web.Request, name: str, part: str) -> str:
    if request.method == "GET":
        if part == "log":
            return "get-log"
        if name:
            return "get"
        return "watch" if "watch" in request.query else "list"
    if request.method == "PATCH":
        return "apply-status" if part == "status" else "apply"
    return {"POST": "create", "PUT": "update", "DELETE": "delete"}[request.method]


def _status(code: int, reason: str, message: str) -> web.Response:
    body = {"kind": "Status", "code": code, "reason": reason, "message": message}
    return web.json_response(body, status=code)


def _selector(text: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in text.split(",") if pair)


def _matches(what: Object, kind: str, namespace: str, selector: dict[str, str]) -> bool:
    metadata = what["metadata"]
    labels = metadata.get("labels", {})
    return (
        what["kind"] == kind
        and namespace in ("", metadata.get("namespace"))
        and all(labels.get(key) == value for key, value in selector.items())
    )


def _merge(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merge(old.get(key), value) for key, value in new.items()}}
    return copy.deepcopy(new)


def _without(live: Any, before: Any, after: Any) -> Any:
    """`live` less the fields that were applied before and are not now."""
    if not (isinstance(live, dict) and isinstance(before, dict) and isinstance(after, dict)):
        return live
    return {
        key: _without(value, before.get(key), after.get(key))
        for key, value in live.items()
        if key not in before or key in after
    }
