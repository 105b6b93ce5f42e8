"""The admin port's small HTTP server: fixed answers, bounds, and no request that hurts it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from servewright_runtime.supervisor import admin
from servewright_runtime.supervisor.admin import Answer, serve_admin
from servewright_runtime.supervisor.asking import ask_tcp


@contextlib.asynccontextmanager
async def serving(otherwise: Answer | None = None) -> AsyncIterator[int]:
    async def fine() -> Answer:
        return Answer(200, b"fine\n")

    async def broken() -> Answer:
        raise RuntimeError("a bug")

    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    port = listener.getsockname()[1]
    server = await serve_admin(listener, {"/fine": fine, "/broken": broken}, otherwise)
    async with server:
        yield port


async def exchange(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


async def test_a_query_is_ignored_and_the_connection_ends() -> None:
    async with serving() as port:
        answer = await exchange(port, b"GET /fine?x=1 HTTP/1.1\r\nhost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close" in answer
    assert answer.endswith(b"\r\n\r\nfine\n")


async def test_head_gets_the_length_and_no_body() -> None:
    async with serving() as port:
        answer = await exchange(port, b"HEAD /fine HTTP/1.1\r\n\r\n")
    assert b"content-length: 5" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\r\n\r\n",
        b"GET /fine\r\n\r\n",
        b"GET /fine SIP/2.0\r\n\r\n",
        b"\r\n\r\n",
        b"GET /" + b"x" * 100_000,
    ],
    ids=["TLS", "no version", "another protocol", "an empty head", "a head without end"],
)
async def test_what_is_no_request_is_a_400(data: bytes) -> None:
    async with serving() as port:
        assert b" 400 " in (await exchange(port, data)).split(b"\r\n")[0]


async def test_a_client_that_says_nothing_is_let_go() -> None:
    async with serving() as port:
        with pytest.MonkeyPatch.context() as hurried:
            hurried.setattr(admin, "_REQUEST_TIMEOUT_S", 0.05)
            assert await exchange(port, b"GET /fine") == b""
        assert (await ask_tcp("127.0.0.1", port, "/fine", timeout_s=5)).body == b"fine\n"


async def test_a_bug_in_an_answer_is_a_500_and_the_next_is_answered() -> None:
    async with serving() as port:
        assert (await ask_tcp("127.0.0.1", port, "/broken", timeout_s=5)).status == 500
        assert (await ask_tcp("127.0.0.1", port, "/fine", timeout_s=5)).status == 200


async def test_a_placeholder_answers_everything_alike() -> None:
    loading = Answer(503, b"loading\n", headers=(("retry-after", "1"),))
    async with serving(loading) as port:
        answer = await exchange(port, b"POST /v1/completions HTTP/1.1\r\ncontent-length: 0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in answer
