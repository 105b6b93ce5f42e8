"""The load generator of the cluster tests sees every answer that is not whole: it can fail."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from support import load as program
from support.load import Account, Load, run
from support.waiting import eventually

# So many requests are watched in each test.
ENOUGH = 3
PATIENCE_S = 30.0
IMPATIENCE_S = 0.5  # where nothing is to come

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def whole(body: bytes, status: str = "200 OK", claimed: int | None = None) -> Answer:
    """An answer of a known length, which `claimed` may lie about."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        length = len(body) if claimed is None else claimed
        head = (
            f"HTTP/1.1 {status}\r\ncontent-length: {length}\r\nx-servewright-revision: r1\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        if claimed is not None:
            writer.close()

    return answer


def events(*data: str, end: bytes = b"0\r\n\r\n") -> Answer:
    """Server-sent events in chunks. `end` empty: the connection closes instead."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-servewright-revision: r1\r\n\r\n"
        )
        for item in data:
            line = f"data: {item}\n\n".encode()
            writer.write(b"%x\r\n%b\r\n" % (len(line), line))
        writer.write(end)
        await writer.drain()
        if not end:
            writer.close()

    return answer


async def reset(writer: asyncio.StreamWriter) -> None:
    """No answer at all."""
    writer.transport.abort()


async def silence(writer: asyncio.StreamWriter) -> None:
    """Neither an answer nor an end."""


def token(finish_reason: str | None = None) -> str:
    return json.dumps({"choices": [{"text": "a", "finish_reason": finish_reason}]})


SHORT = whole(json.dumps({"choices": [{"text": "a", "finish_reason": "length"}]}).encode())
STREAM = events(token(), token("length"), "[DONE]")


@asynccontextmanager
async def server(short: Answer = SHORT, stream: Answer = STREAM) -> AsyncIterator[str]:
    """A server that answers every request so; its URL."""
    open_writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_writers.append(writer)
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            body = json.loads(await reader.readexactly(length))
            await (stream if body.get("stream") else short)(writer)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        for writer in open_writers:
            writer.close()


async def account_of(url: str, **changes: object) -> Account:
    """What a load on `url` tells after `ENOUGH` requests."""
    fields: dict[str, object] = {"interval_s": 0.0, "keep_alive": 0, "fresh": 0, "streams": 0}
    load = Load(url, "m", **fields | changes)  # type: ignore[arg-type]
    account, stop = Account(), asyncio.Event()
    task = asyncio.create_task(run(load, account, stop))
    await asyncio.to_thread(eventually, lambda: account.total >= ENOUGH)
    stop.set()
    await task
    return account


def patience_s(why: str) -> float:
    return IMPATIENCE_S if "Timeout" in why else PATIENCE_S


async def test_whole_answers_are_counted_by_kind_and_revision() -> None:
    async with server() as url:
        account = await account_of(url, keep_alive=1, fresh=1, streams=1)
    assert set(account.whole) <= {"keep-alive", "fresh", "stream"}
    assert account.failed.total() == account.truncated.total() == 0
    assert account.revisions == {"r1": account.total}
    assert account.done


@pytest.mark.parametrize("kind", ["keep_alive", "fresh"])
@pytest.mark.parametrize(
    ("answer", "truncated", "why"),
    [
        pytest.param(whole(b"{}", "503 Busy"), False, "status 503", id="not 200"),
        pytest.param(reset, False, "Error", id="no answer"),
        pytest.param(silence, False, "ReadTimeout", id="silence"),
        pytest.param(whole(b'{"choi', claimed=90), True, "RemoteProtocolError", id="cut"),
        pytest.param(whole(b'{"choi'), True, "no completion", id="half a document"),
        pytest.param(whole(b'{"choices": []}'), True, "no completion", id="no choice"),
        pytest.param(
            whole(token().encode()), True, "no finish_reason", id="an answer that did not finish"
        ),
    ],
)
async def test_a_short_answer_that_is_not_whole_is_counted(
    kind: str, answer: Answer, truncated: bool, why: str
) -> None:
    async with server(short=answer) as url:
        account = await account_of(url, silence_s=patience_s(why), **{kind: 1})
    assert account.whole.total() == 0
    counted, other = account.failed, account.truncated
    if truncated:
        counted, other = other, counted
    assert counted.total() >= ENOUGH
    assert other.total() == 0
    assert all(why in told for _, _, told in account.failures)


@pytest.mark.parametrize(
    ("answer", "truncated", "why"),
    [
        pytest.param(whole(b"{}", "429 Busy"), False, "status 429", id="not 200"),
        pytest.param(reset, False, "Error", id="no answer"),
        pytest.param(events(token(), end=b""), True, "after 1 events", id="cut"),
        pytest.param(
            events(token(), token("length")), True, "without [DONE]", id="a quiet early end"
        ),
        pytest.param(
            events(token(), "[DONE]"), True, "finish_reason is None", id="no finish_reason"
        ),
        pytest.param(
            events(token(), '{"error": {"message": "dying"}}', "[DONE]"),
            True,
            "dying",
            id="an error event",
        ),
        pytest.param(
            events(token(), end=b"5\r\nda"), True, "ReadTimeout", id="a stream that hangs"
        ),
    ],
)
async def test_a_stream_that_is_not_whole_is_counted(
    answer: Answer, truncated: bool, why: str
) -> None:
    async with server(stream=answer) as url:
        account = await account_of(url, silence_s=patience_s(why), streams=1)
    assert account.whole.total() == 0
    assert (account.truncated if truncated else account.failed).total() == account.total
    assert all(why in told for _, _, told in account.failures)


async def test_a_refused_connection_fails_unless_it_may_be_tried_anew(
    unused_tcp_port: int,
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    account = await account_of(url, fresh=1)
    assert account.failed["fresh"] == account.total
    assert account.refused == 0

    account = await account_of(url, fresh=3, reconnect_s=1.0)
    assert account.failed["fresh"] == account.total
    assert account.refused > 0


async def test_stopping_lets_what_is_under_way_end() -> None:
    began, may_end = asyncio.Event(), asyncio.Event()

    async def slow(writer: asyncio.StreamWriter) -> None:
        began.set()
        await may_end.wait()
        await STREAM(writer)

    async with server(stream=slow) as url:
        account, stop = Account(), asyncio.Event()
        load = Load(url, "m", keep_alive=0, fresh=0)
        task = asyncio.create_task(run(load, account, stop))
        await began.wait()
        stop.set()
        may_end.set()
        await task
    assert account.whole == {"stream": 1}


async def test_the_program_tells_its_account_line_by_line() -> None:
    async with server() as url:
        load = {"url": url, "model": "m", "interval_s": 0.05}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, program.__file__, json.dumps(load)), stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        first = Account()
        while first.total == 0:  # it may not have begun when it first tells
            first = Account.heard((await process.stdout.readline()).decode())
        process.terminate()
        rest = (await process.stdout.read()).decode().splitlines()
        assert await process.wait() == 0
    last = Account.heard(rest[-1])
    assert not first.done
    assert last.done
    assert last.whole.total() == last.total >= first.total > 0
