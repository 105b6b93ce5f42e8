"""Whatever is sent, the answer is well-formed and never a 500."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis.strategies as st
import orjson
import pytest
from hypothesis import given

from support.bodies import any_body, any_json
from support.serving import WAIT_S, Server, serving_in_thread, sse
from support.waiting import eventually

PATHS = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Server]:
    with serving_in_thread() as server:
        yield server
        eventually(lambda: server.state.in_flight == 0)
        assert server.engine.stats().running == 0
        assert server.engine.stats().kv_blocks_used == 0
        assert server.state.buffered_bytes == 0


@pytest.fixture(scope="module")
def client(fuzzed: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fuzzed.url, timeout=WAIT_S) as client:
        yield client


def check(answer: httpx.Response) -> None:
    """The answer is one of those that the API promises."""
    assert answer.headers["x-request-id"]
    assert answer.headers["x-servewright-revision"] == "rev-1"
    if answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.status_code == 200
        *chunks, done = sse(answer.content)
        assert done == b"[DONE]"
        assert all("choices" in orjson.loads(chunk) for chunk in chunks)
        return
    body = orjson.loads(answer.content)
    if answer.status_code == 200:
        assert "choices" in body or "tokens" in body or "prompt" in body
    else:
        assert answer.status_code in (400, 404, 429)
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert isinstance(body["error"]["message"], str)


@given(body=any_body(), path=st.sampled_from(PATHS))
def test_any_object_gets_a_well_formed_answer(
    client: httpx.Client, body: dict[str, Any], path: str
) -> None:
    check(client.post(path, json=body))


@given(
    body=st.binary(max_size=200) | any_json.map(lambda value: repr(value).encode()),
    path=st.sampled_from(PATHS),
)
def test_any_bytes_get_a_well_formed_answer(client: httpx.Client, body: bytes, path: str) -> None:
    check(client.post(path, content=body, headers={"content-type": "application/json"}))
