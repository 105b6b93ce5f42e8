"""Connections as the network makes them: half-sent, slow, huge, many, and suddenly gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from typing import Any

import httpx
import pytest

from servewright_runtime.api.protocol import Guards
from servewright_runtime.api.state import Bounds
from servewright_runtime.models.runner import StepBatch
from support.scripted_model import ScriptedRunner, loaded
from support.serving import WAIT_S, Model, Server, serving, sse, until

ENDLESS = {"model": "tiny", "prompt": "x", "max_tokens": 900, "ignore_eos": True}


def request(body: dict[str, Any], path: str = "/v1/completions") -> bytes:
    """A whole HTTP request."""
    content = json.dumps(body).encode()
    return head(len(content), path) + content


def head(length: int, path: str = "/v1/completions") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {length}\r\n\r\n"
    ).encode()


class Gate:
    """Lets the model make a step only when the test says so."""

    def __init__(self) -> None:
        self._steps = threading.Semaphore(0)
        self.waiting = threading.Event()
        self.batches: list[int] = []  # sequences of each step

    def __call__(self, batch: StepBatch) -> None:
        self.waiting.set()
        assert self._steps.acquire(timeout=WAIT_S)
        self.waiting.clear()
        self.batches.append(len(batch.context_starts))

    def open(self, steps: int = 1) -> None:
        self._steps.release(steps)


async def connect(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(server.host, server.port)


async def connect_small(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection whose receive buffer stays small; the kernel would let it grow to megabytes."""
    own = socket.socket()
    own.setblocking(False)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    await asyncio.get_running_loop().sock_connect(own, (server.host, server.port))
    return await asyncio.open_connection(sock=own, limit=1024)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_client_that_vanishes_mid_stream_costs_no_further_step() -> None:
    gate = Gate()
    model = Model(loaded=loaded(ScriptedRunner(on_step=gate)))
    async with serving(model) as server:
        reader, writer = await connect(server)
        writer.write(request({**ENDLESS, "stream": True}))
        gate.open(3)
        await reader.readuntil(b"data: ")
        await until(lambda: len(gate.batches) == 3 and gate.waiting.is_set())  # in the fourth
        await close(writer)
        await until(lambda: server.engine._cancelled)
        gate.open(900)
        await until(lambda: server.state.in_flight == 0)
        assert len(gate.batches) == 4  # the one under way was the last
        stats = server.engine.stats()
        assert (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)
        drawn = server.sample("vllm:generation_tokens_total")
        assert drawn == len(gate.batches)
        assert server.sample("vllm:request_generation_tokens_sum") == drawn
        assert server.sample("vllm:prompt_tokens_total") == 1
        assert server.sample("vllm:request_success_total", finished_reason="abort") == 1
        assert server.sample("servewright_http_disconnects_total") == 1


async def test_a_client_that_vanishes_before_its_whole_answer_cancels_all_choices() -> None:
    gate = Gate()
    model = Model(loaded=loaded(ScriptedRunner(on_step=gate)))
    async with serving(model) as server:
        _, writer = await connect(server)
        writer.write(request({**ENDLESS, "n": 3}))
        gate.open(2)
        await until(lambda: len(gate.batches) == 2 and gate.waiting.is_set())
        await close(writer)
        await until(lambda: len(server.engine._cancelled) == 3)
        gate.open(900)
        await until(lambda: server.state.in_flight == 0)
        assert len(gate.batches) == 3
        assert server.engine.stats().running == 0
        assert server.sample("vllm:request_success_total", finished_reason="abort") == 3


async def test_a_waiting_request_whose_client_vanishes_leaves_the_queue() -> None:
    gate = Gate()
    model = Model(loaded=loaded(ScriptedRunner(on_step=gate)), max_batch=1)
    async with serving(model) as server:
        reader, first = await connect(server)
        first.write(request({**ENDLESS, "max_tokens": 6, "stream": True}))
        await until(gate.waiting.is_set)
        _, second = await connect(server)
        second.write(request({**ENDLESS, "stream": True}))
        await until(lambda: server.engine.stats().waiting == 1)
        await close(second)
        await until(lambda: server.engine._cancelled)
        gate.open(900)
        await reader.readuntil(b"[DONE]")
        await until(lambda: server.state.in_flight == 0)
        assert server.engine.stats().waiting == 0
        assert gate.batches == [1] * 6
        await close(first)


# Logprobs make an answer of a thousand tokens larger than the buffers between us and the client.
LOUD = {**ENDLESS, "stream": True, "logprobs": 20}


async def test_a_slow_reader_holds_nobody_up_and_gets_everything() -> None:
    async with serving(send_buffer=16384) as server:
        reader, writer = await connect_small(server)
        writer.write(request(LOUD))
        # Nothing is read; the engine is done with the request nevertheless, and serves others.
        await until(lambda: server.sample("vllm:generation_tokens_total") == 900)
        async with httpx.AsyncClient(base_url=server.url, timeout=WAIT_S) as http:
            answer = await http.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
        assert answer.status_code == 200
        assert server.state.in_flight == 1
        received = b""
        while b"[DONE]" not in received[-64:]:
            part = await asyncio.wait_for(reader.read(65536), WAIT_S)
            assert part, "the connection ended before the answer"
            received += part
        await close(writer)
    events = sse(_dechunk(received.partition(b"\r\n\r\n")[2]))[:-1]
    tokens = [t for e in events for t in json.loads(e)["choices"][0]["logprobs"]["tokens"]]
    assert len(tokens) == 900


def _dechunk(raw: bytes) -> bytes:
    body = b""
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return body
        body += raw[:length]
        raw = raw[length + 2 :]
    return body


async def test_a_reader_that_never_reads_is_cut_off() -> None:
    async with serving(guards=Guards(write_timeout_s=0.2), send_buffer=16384) as server:
        _, writer = await connect_small(server)
        try:
            writer.write(request(LOUD))
            await until(lambda: server.sample("servewright_http_disconnects_total") == 1)
            await until(lambda: server.state.in_flight == 0)
        finally:
            await close(writer)


async def test_half_a_head_is_closed_after_the_bound() -> None:
    async with serving(guards=Guards(head_timeout_s=0.2)) as server:
        for sent in (b"", b"POST /v1/comp", b"POST / HTTP/1.1\r\nhost: x\r\n", b"\r\n"):
            reader, writer = await connect(server)
            writer.write(sent)
            answer = await asyncio.wait_for(reader.read(), WAIT_S)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"x-servewright-revision: rev-1\r\n" in answer
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
            await close(writer)


async def test_a_connection_kept_alive_must_send_its_next_head_in_time_too() -> None:
    async with serving(guards=Guards(head_timeout_s=0.2)) as server:
        reader, writer = await connect(server)
        body = request({"model": "tiny", "prompt": "x"})
        writer.write(body)
        await reader.readuntil(b'"usage"')
        await asyncio.sleep(0.3)  # longer than a head may take: idle between requests is fine
        writer.write(body)
        await reader.readuntil(b'"usage"')
        writer.write(b"GET /health HT")
        rest = await asyncio.wait_for(reader.read(), WAIT_S)
        assert b"HTTP/1.1 408 " in rest
        await close(writer)


async def test_half_a_body_is_408_after_the_bound() -> None:
    async with serving(bounds=Bounds(body_timeout_s=0.2)) as server:
        reader, writer = await connect(server)
        writer.write(head(1000) + b'{"model":')
        answer = await asyncio.wait_for(reader.read(), WAIT_S)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close\r\n" in answer
        assert server.state.buffered_bytes == 0
        await close(writer)


async def test_a_client_that_leaves_while_sending_leaves_nothing_behind(server: Server) -> None:
    _, writer = await connect(server)
    writer.write(head(1000) + b'{"model":')
    await until(lambda: server.state.in_flight == 1)
    await close(writer)
    await until(lambda: server.state.in_flight == 0)
    assert server.state.buffered_bytes == 0


async def test_a_head_that_is_too_large_is_431_and_one_without_end_is_cut_off() -> None:
    async with serving(guards=Guards(head_bytes=4096)) as server:
        for start, more in (
            (b"GET /", b"y" * 5000),
            (b"GET / HTTP/1.1\r\nx-long: ", b"y" * 5000),
            (b"GET / HTTP/1.1\r\n", b"x-filler: y\r\n" * 400),
        ):
            reader, writer = await connect(server)
            writer.write(start)
            await writer.drain()
            await until(lambda: any(hasattr(c, "url") for c in server.connections))
            writer.write(more)
            answer = await asyncio.wait_for(reader.read(), WAIT_S)
            assert answer.startswith(b"HTTP/1.1 431 ")
            await close(writer)
            _, writer = await connect(server)
            writer.write(start)
            await asyncio.wait_for(_pour(writer, more), WAIT_S)  # until the connection breaks
            await close(writer)


async def _pour(writer: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(data)
            await writer.drain()


async def test_trailers_without_end_are_cut_off() -> None:
    async with serving(guards=Guards(head_bytes=4096)) as server:
        _, writer = await connect(server)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
        )
        pouring = asyncio.create_task(_pour(writer, b"x-trailer: " + b"y" * 1000 + b"\r\n"))
        await asyncio.wait_for(pouring, WAIT_S)
        await until(lambda: server.state.in_flight == 0)
        await close(writer)


async def test_a_body_in_tiny_chunks_is_a_body_like_any_other(server: Server) -> None:
    body = json.dumps({"model": "tiny", "prompt": "x" * 900, "max_tokens": 1}).encode()
    reader, writer = await connect(server)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    for byte in body:
        writer.write(b"1\r\n%c\r\n" % byte)
    writer.write(b"0\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    await close(writer)


async def test_what_is_no_http_is_400_with_our_body(server: Server) -> None:
    reader, writer = await connect(server)
    writer.write(b"\x16\x03\x01\x02\x00 this is TLS\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), WAIT_S)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"x-servewright-revision: rev-1\r\n" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    await close(writer)


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
async def test_a_body_over_ten_megabytes_is_refused_early(server: Server, chunked: bool) -> None:
    reader, writer = await connect(server)
    size = 64 * 1024 * 1024
    if chunked:
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
    else:
        writer.write(head(size))
        piece = b" " * 65536
    pouring = asyncio.create_task(_pour(writer, piece))
    line = await asyncio.wait_for(reader.readline(), WAIT_S)
    assert line.startswith(b"HTTP/1.1 413 ")
    pouring.cancel()
    await close(writer)
    await until(lambda: server.state.in_flight == 0)
    assert server.state.buffered_bytes == 0


async def test_a_body_of_just_under_ten_megabytes_is_read(http: httpx.AsyncClient) -> None:
    answer = await http.post("/tokenize", json={"prompt": "x" * (10 * 1024 * 1024 - 100)})
    assert answer.status_code == 200
    assert answer.json()["count"] == 10 * 1024 * 1024 - 100


async def test_bodies_that_take_too_much_memory_together_are_429() -> None:
    bounds = Bounds(buffered_bytes=100_000)
    async with serving(bounds=bounds) as server:
        writers = []
        for _ in range(2):
            _, writer = await connect(server)
            writer.write(head(60_000) + b" " * 45_000)
            writers.append(writer)
        await until(lambda: server.state.buffered_bytes == 90_000)
        reader, writer = await connect(server)
        writer.write(head(60_000) + b" " * 45_000)
        assert (await reader.readline()).startswith(b"HTTP/1.1 429 ")
        for one in (*writers, writer):
            await close(one)
        await until(lambda: server.state.buffered_bytes == 0)


async def test_a_thousand_idle_connections_hurt_nobody(server: Server) -> None:
    idle = [await connect(server) for _ in range(1000)]
    async with httpx.AsyncClient(base_url=server.url, timeout=WAIT_S) as http:
        answer = await http.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
    assert answer.status_code == 200
    for _, writer in idle:
        await close(writer)


async def test_a_thousand_connections_are_all_answered() -> None:
    model = Model(max_batch=64, max_queued=1000, max_concurrency=1000)
    async with serving(model) as server:
        body = request({"model": "tiny", "prompt": "x", "max_tokens": 2})

        async def ask() -> bytes:
            reader, writer = await connect(server)
            writer.write(body)
            line = await reader.readline()
            await close(writer)
            return line

        lines = await asyncio.gather(*(ask() for _ in range(1000)))
        assert set(lines) == {b"HTTP/1.1 200 OK\r\n"}
        assert server.sample("vllm:generation_tokens_total") == 2000


async def test_one_connection_too_many_is_503() -> None:
    async with serving(guards=Guards(connections=3)) as server:
        held = [await connect(server) for _ in range(3)]
        await until(lambda: len(held) == 3)
        reader, writer = await connect(server)
        answer = await asyncio.wait_for(reader.read(), WAIT_S)
        assert answer.startswith(b"HTTP/1.1 503 ")
        for _, one in (*held, (reader, writer)):
            await close(one)


async def test_one_request_over_the_models_concurrency_is_429_at_once() -> None:
    gate = Gate()
    model = Model(loaded=loaded(ScriptedRunner(on_step=gate)), max_concurrency=2)
    async with serving(model) as server:
        writers = []
        for _ in range(2):
            _, writer = await connect(server)
            writer.write(request({**ENDLESS, "stream": True}))
            writers.append(writer)
        await until(lambda: server.models["tiny"].in_flight == 2)
        async with httpx.AsyncClient(base_url=server.url, timeout=WAIT_S) as http:
            answer = await http.post("/v1/completions", json=ENDLESS)
            assert answer.status_code == 429
            assert answer.headers["retry-after"] == "1"
            assert (await http.get("/health")).status_code == 200
        for writer in writers:
            await close(writer)
        gate.open(1000)
        await until(lambda: server.state.in_flight == 0)


async def test_pipelined_requests_are_answered_in_their_order(server: Server) -> None:
    reader, writer = await connect(server)
    for tokens in (5, 1, 3):
        writer.write(request({"model": "tiny", "prompt": "x", "max_tokens": tokens}))
    for tokens in (5, 1, 3):
        raw = await reader.readuntil(b"\r\n\r\n")
        length = int(raw.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        assert body["usage"]["completion_tokens"] == tokens
    await close(writer)
