"""The operator's own calls, against servers that answer as replicas do, well and badly."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from servewright_operator.calling import call
from support.probed import (
    KEY,
    REVISION,
    SECRET,
    WAIT_S,
    Handler,
    hangs,
    probe_of,
    probing,
    replica,
    says,
    until,
)


async def test_a_good_answer_succeeds_and_is_told_once() -> None:
    async with replica(says()) as server, probing() as heard:
        heard.prober.tell(KEY, probe_of(server.url, interval_s=0.01), {})
        await until(lambda: len(server.asked) >= 5)
        record = heard.record
    assert (record.result, record.reason, record.revision) == ("Succeeded", "Answered", REVISION)
    assert record.failures == 0
    assert record.succeeded_at == record.time
    assert record.latency_s > 0
    assert heard.changes == [KEY]


@pytest.mark.parametrize(
    ("expect", "tokens"),
    [
        pytest.param("Paris", 32, id="with a text to expect, 32"),
        pytest.param(None, 1, id="without one, 1"),
    ],
)
async def test_as_many_tokens_are_asked_for_as_the_runtimes_own_probe_takes(
    expect: str | None, tokens: int
) -> None:
    async with replica(says()) as server, probing() as heard:
        heard.prober.tell(KEY, probe_of(server.url, expect=expect), {})
        await heard.answered()
    assert server.asked == [
        {
            "model": "mine",
            "prompt": "The capital of France is",
            "temperature": 0,
            "max_tokens": tokens,
        }
    ]


async def test_a_server_that_allows_fewer_tokens_chooses_how_many() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        tokens = (await request.json()).get("max_tokens")
        return await says(status=400 if tokens else 200)(request)

    async with replica(answer) as server, probing() as heard:
        heard.prober.tell(KEY, probe_of(server.url), {})
        record = await heard.answered()
    assert record.result == "Succeeded"


async def test_each_call_is_a_connection_of_its_own() -> None:
    async with replica(says()) as server, probing() as heard:
        heard.prober.tell(KEY, probe_of(server.url, interval_s=0.01), {})
        await until(lambda: len(server.asked) >= 4)
    assert len(server.peers) >= 4


@pytest.mark.parametrize(
    ("answer", "result", "reason", "message"),
    [
        pytest.param(
            says("no room", status=429),
            "Succeeded",
            "Busy",
            "It is alive and has no place free.",
            id="429 means alive and busy",
        ),
        pytest.param(
            says("no room", status=429, revision="bbbbbbbbbb"),
            "Failed",
            "WrongRevision",
            "The answer came from revision bbbbbbbbbb, not from aaaaaaaaaa.",
            id="but not from another revision",
        ),
        pytest.param(
            says(revision="bbbbbbbbbb"),
            "Failed",
            "WrongRevision",
            "The answer came from revision bbbbbbbbbb, not from aaaaaaaaaa.",
            id="a good answer of another revision",
        ),
        pytest.param(
            says(revision=None),
            "Failed",
            "WrongRevision",
            "The answer came from something that names no revision, not from aaaaaaaaaa.",
            id="a good answer of something else",
        ),
        pytest.param(
            says(" a a a a"),
            "Failed",
            "UnexpectedAnswer",
            "'Paris' was wanted in the answer to 'The capital of France is', but ' a a a a' came.",
            id="nonsense",
        ),
        pytest.param(
            says("The engine has failed.", status=503),
            "Failed",
            "Http503",
            "The answer was 503: The engine has failed.",
            id="an error",
        ),
        pytest.param(
            says("A key is needed.", status=401),
            "Failed",
            "Http401",
            "The answer was 401: A key is needed.",
            id="a key that is not taken",
        ),
        pytest.param(
            says(body=b"<html>"),
            "Failed",
            "NotACompletion",
            "The answer is no completion.",
            id="a page",
        ),
        pytest.param(
            says(body=b"x" * 2**20),
            "Failed",
            "NotACompletion",
            "The answer is no completion.",
            id="a megabyte",
        ),
        pytest.param(
            says(body=b"[" * 100_000),
            "Failed",
            "NotACompletion",
            "The answer is no completion.",
            id="brackets without end",
        ),
    ],
)
async def test_what_an_answer_means(
    answer: Handler, result: str, reason: str, message: str
) -> None:
    async with replica(answer) as server, probing() as heard:
        heard.prober.tell(KEY, probe_of(server.url), {})
        record = await heard.answered(0 if result == "Succeeded" else 2)
    assert (record.result, record.reason, record.message) == (result, reason, message)


async def test_no_answer_in_time_fails() -> None:
    async with replica(hangs) as server, probing() as heard:
        heard.prober.tell(KEY, probe_of(server.url, timeout_s=0.05), {})
        record = await heard.answered(2)
    assert (record.reason, record.message) == ("TimedOut", "No answer came within 0.05 s.")


async def test_an_answer_that_is_cut_fails() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-length": "1000"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.close()
        return response

    async with replica(answer) as server, probing() as heard:
        heard.prober.tell(KEY, probe_of(server.url), {})
        record = await heard.answered(2)
    assert (record.result, record.reason) == ("Failed", "NotReached")


async def test_nobody_there_fails() -> None:
    with socket.socket() as bound:  # and does not listen, so nobody else does
        bound.bind(("127.0.0.1", 0))
        async with probing() as heard:
            heard.prober.tell(KEY, probe_of(f"http://127.0.0.1:{bound.getsockname()[1]}"), {})
            record = await heard.answered(2)
    assert (record.result, record.reason) == ("Failed", "NotReached")
    assert "refused" in record.message


async def test_what_the_operator_itself_cannot_do_is_unknown() -> None:
    class Exhausted(aiohttp.TCPConnector):
        async def connect(self, *_: Any, **__: Any) -> Any:
            raise OSError(errno.EMFILE, "Too many open files")

    async with aiohttp.ClientSession(connector=Exhausted()) as calls:
        answer = await call(calls, probe_of("http://127.0.0.1:1"))
    assert (answer.result, answer.reason) == ("Unknown", "NotAsked")
    message = "The operator could not call http://127.0.0.1:1: Too many open files."
    assert answer.message == message


async def test_a_mistake_of_ours_is_unknown_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(aiohttp.TCPConnector):
        async def connect(self, *_: Any, **__: Any) -> Any:
            raise LookupError("a mistake")

    async with aiohttp.ClientSession(connector=Broken()) as calls:
        answer = await call(calls, probe_of("http://127.0.0.1:1", key=SECRET))
    assert (answer.result, answer.reason) == ("Unknown", "InternalError")
    assert "a mistake" in caplog.text
    assert SECRET not in caplog.text


async def test_one_failure_is_not_told_and_two_are() -> None:
    answers = [says(), says(status=500), says(), says(status=500), says(status=500)]
    seen: list[tuple[int, int]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        number = len(server.asked) - 1
        seen.append((number, len(heard.changes)))
        return await answers[min(number, 4)](request)

    async with replica(answer) as server, probing() as heard:
        heard.prober.tell(KEY, probe_of(server.url, interval_s=0.01), {})
        await until(lambda: len(heard.changes) == 2)
        record = heard.record
    assert (record.result, record.failures) == ("Failed", 2)
    assert seen[:5] == [(0, 0), (1, 1), (2, 1), (3, 1), (4, 1)]


async def test_failures_that_differ_at_every_call_are_told_once() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return await says(status=500 + len(server.asked) % 2)(request)

    async with replica(answer) as server, probing() as heard:
        heard.prober.tell(KEY, probe_of(server.url, interval_s=0.01), {})
        record = await heard.answered(8)
    assert (record.result, record.repeats, heard.changes) == ("Failed", 1, [KEY])


async def test_a_failure_is_repeated_soon_and_then_ever_later() -> None:
    pauses = []
    async with replica(says(status=500)) as server, probing(jitter=lambda: 0.5) as heard:
        prober, probe = heard.prober, probe_of(server.url, interval_s=10.0)
        prober.tell(KEY, probe, {})
        record = await heard.answered(1)
    for failures in range(1, 14):
        failed = replace(record, failures=failures)
        pauses.append(prober._pause_s(probe, failed))
    assert pauses[:3] == [0.01, 0.02, 0.04]
    assert pauses[-1] == 10.0
    assert prober._pause_s(probe, replace(record, result="Succeeded")) == 10.0


async def test_a_success_is_remembered_through_failures() -> None:
    times = iter(datetime(2026, 11, 23, tzinfo=UTC) + timedelta(seconds=n) for n in range(10**6))

    async def answer(request: web.Request) -> web.StreamResponse:
        return await says(status=200 if len(server.asked) == 1 else 500)(request)

    async with replica(answer) as server, probing(now=lambda: next(times)) as heard:
        heard.prober.tell(KEY, probe_of(server.url, interval_s=0.01), {})
        record = await heard.answered(3)
    assert record.succeeded_at == datetime(2026, 11, 23, tzinfo=UTC)


async def test_the_key_is_sent_and_told_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with replica(says(status=500)) as server, probing() as heard:
        heard.prober.tell(KEY, probe_of(server.url, key=SECRET), {})
        record = await heard.answered(2)
    assert set(server.keys) == {f"Bearer {SECRET}"}
    assert caplog.records
    told = [str(vars(each)) for each in caplog.records]
    assert not any(SECRET in each for each in [*told, repr(record)])


async def test_the_same_wish_again_asks_nothing_again() -> None:
    async with replica(says()) as server, probing() as heard:
        for _ in range(5):
            heard.prober.tell(KEY, probe_of(server.url), {})
            await heard.answered()
        assert len(server.asked) == 1


async def test_another_question_forgets_the_answer_and_another_interval_does_not() -> None:
    async with replica(says()) as server, probing() as heard:
        heard.prober.tell(KEY, probe_of(server.url), {})
        first = await heard.answered()
        heard.prober.tell(KEY, probe_of(server.url, interval_s=1800.0), {})
        assert heard.prober.record(KEY) is first
        heard.prober.tell(KEY, probe_of(server.url, revision="bbbbbbbbbb"), {})
        assert heard.prober.record(KEY) is None
        heard.prober.tell(KEY, None, {})
        assert heard.prober.record(KEY) is None
        assert heard.prober.states(KEY) == {}


async def test_a_state_is_asked_until_the_pod_is_ready() -> None:
    async with replica(says()) as server, probing() as heard:
        wish = {"uid-1": f"{server.url}/state"}
        heard.prober.tell(KEY, None, wish)
        await until(lambda: server.states >= 2)  # 503: it is asked again
        assert heard.changes == []
        server.state = {"phase": "Loading"}
        await until(lambda: heard.prober.states(KEY) == {"uid-1": {"phase": "Loading"}})
        asked = server.states
        await until(lambda: server.states >= asked + 2)
        assert heard.changes == [KEY]
        server.state = {"phase": "Ready", "models": []}
        await until(lambda: len(heard.changes) == 2)
        asked = server.states
        heard.prober.tell(KEY, None, wish)
        assert heard.prober.states(KEY)["uid-1"]["phase"] == "Ready"
        heard.prober.tell(KEY, None, {"uid-2": f"{server.url}/state"})
        await until(lambda: "uid-2" in heard.prober.states(KEY))
        assert set(heard.prober.states(KEY)) == {"uid-2"}
        assert server.states == asked + 1


async def test_leaving_stops_what_is_under_way() -> None:
    reached = asyncio.Event()

    async def answer(_: web.Request) -> web.StreamResponse:
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with replica(answer) as server:
        async with probing() as heard:
            heard.prober.tell(KEY, probe_of(server.url), {"uid-1": f"{server.url}/state"})
            await reached.wait()
        asked, changes = len(server.asked), list(heard.changes)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not [task for task in others if "_keep_asking" in repr(task)]
        assert (len(server.asked), heard.changes) == (asked, changes)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_told_at_its_first_refusal_already(status: int) -> None:
    """A pass reads the key anew; with the new one the calls go on as if nothing had been."""

    async def answer(request: web.Request) -> web.StreamResponse:
        is_new = request.headers.get("authorization") == "Bearer new"
        return await says(status=200 if is_new else status)(request)

    async with replica(answer) as server, probing(retry_s=WAIT_S) as heard:
        heard.prober.tell(KEY, probe_of(server.url, key="old"), {})
        record = await heard.answered()
        assert (record.reason, record.failures) == (f"Http{status}", 1)
        assert heard.changes == [KEY]
        heard.prober.tell(KEY, probe_of(server.url, key="new"), {})
        await until(lambda: heard.record.result == "Succeeded")
    assert heard.changes == [KEY, KEY]
