"""Servers that a prober calls, and a prober that tells what it heard."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

from servewright_operator.names import Key
from servewright_operator.objects import Probe, ProbeRecord
from servewright_operator.probing import Prober

KEY = Key("default", "mine")
WAIT_S = 20.0
SECRET = "the-operators-key"  # noqa: S105
REVISION = "aaaaaaaaaa"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Replica:
    """A server that counts and keeps what it was asked."""

    answer: Handler
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    peers: set[Any] = field(default_factory=set)
    states: int = 0
    state: dict[str, Any] | None = None

    async def completions(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(await request.json())
        self.keys.append(request.headers.get("authorization"))
        assert request.transport is not None
        self.peers.add(request.transport.get_extra_info("peername"))
        return await self.answer(request)

    async def tell_state(self, _: web.Request) -> web.Response:
        self.states += 1
        if self.state is None:
            return web.Response(status=503)
        return web.json_response(self.state)


@contextlib.asynccontextmanager
async def replica(answer: Handler) -> AsyncIterator[Replica]:
    """On a free port of loopback."""
    made = Replica(answer)
    app = web.Application()
    app.router.add_post("/v1/completions", made.completions)
    app.router.add_get("/state", made.tell_state)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()


def says(
    text: str = " Paris.",
    *,
    status: int = 200,
    revision: str | None = REVISION,
    body: bytes | None = None,
) -> Handler:
    async def answer(_: web.Request) -> web.Response:
        headers = {} if revision is None else {"x-servewright-revision": revision}
        content = {"choices": [{"text": text}]} if status == 200 else {"error": {"message": text}}
        return web.Response(
            status=status,
            headers=headers,
            body=json.dumps(content).encode() if body is None else body,
        )

    return answer


async def hangs(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


def probe_of(url: str, **changes: Any) -> Probe:
    plain = Probe(
        url=url,
        key=None,
        model="mine",
        prompt="The capital of France is",
        expect="Paris",
        timeout_s=5.0,
        interval_s=3600.0,
        revision=REVISION,
    )
    return replace(plain, **changes)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - it is true of what no event tells
            await asyncio.sleep(0.002)


@dataclass
class Heard:
    """A prober, and how often it called back."""

    prober: Prober
    changes: list[Key]

    @property
    def record(self) -> ProbeRecord:
        record = self.prober.record(KEY)
        assert record is not None
        return record

    async def answered(self, failures: int = 0) -> ProbeRecord:
        """The record once it is there, after so many failures."""

        def is_there() -> bool:
            record = self.prober.record(KEY)
            return record is not None and record.failures >= failures

        await until(is_there)
        return self.record


@contextlib.asynccontextmanager
async def probing(**options: Any) -> AsyncIterator[Heard]:
    changes: list[Key] = []
    async with Prober(changes.append, **{"retry_s": 0.01, **options}) as prober:
        yield Heard(prober, changes)
