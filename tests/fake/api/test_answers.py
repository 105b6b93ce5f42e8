"""What an answer says: choices, usage, logprobs, stop strings, whole characters, timing."""

from __future__ import annotations

import itertools
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest

from support.scripted_model import EOS, ScriptedRunner, loaded
from support.serving import WAIT_S, Model, Server, serving, sse

TEXT = "Grüße, 世界! 🦙🦙 and a long tail of plain words."


async def ask(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    path = "/v1/chat/completions" if "messages" in fields else "/v1/completions"
    answer = await http.post(path, json={"model": "tiny", **fields})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


async def stream(http: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    path = "/v1/chat/completions" if "messages" in fields else "/v1/completions"
    answer = await http.post(path, json={"model": "tiny", "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, done = sse(answer.content)
    assert done == b"[DONE]"
    return [orjson.loads(chunk) for chunk in chunks]


def scripted(reply: str | bytes | list[int], **settings: Any) -> Model:
    return Model(loaded=loaded(ScriptedRunner({"P": reply})), **settings)


async def test_a_chat_stream_has_openais_frames(http: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "hi"}]
    chunks = await stream(http, messages=messages)
    first, last = chunks[0], chunks[-1]
    assert first["object"] == "chat.completion.chunk"
    assert first["id"].startswith("chatcmpl-")
    assert first["model"] == "tiny"
    assert first["system_fingerprint"] == "rev-1-scripted"
    assert first["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert last["choices"][0]["finish_reason"] == "stop"
    assert all("usage" not in chunk for chunk in chunks)


async def test_a_completion_stream_has_openais_frames(http: httpx.AsyncClient) -> None:
    chunks = await stream(http, prompt="x", max_tokens=3)
    assert chunks[0]["object"] == "text_completion"
    assert chunks[0]["id"].startswith("cmpl-")
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert set(chunks[0]["choices"][0]) == {"index", "text", "logprobs", "finish_reason"}


async def test_the_usage_chunk_comes_last_and_is_exact(http: httpx.AsyncClient) -> None:
    chunks = await stream(http, prompt="abc", max_tokens=7, stream_options={"include_usage": True})
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 7,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_cached_tokens_are_told(http: httpx.AsyncClient) -> None:
    prompt = "a prompt that is longer than two blocks of tokens"
    await ask(http, prompt=prompt)
    answer = await ask(http, prompt=prompt)
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == len(prompt) // 16 * 16


async def test_streamed_and_whole_answers_have_the_same_text(http: httpx.AsyncClient) -> None:
    whole = await ask(http, prompt="x", max_tokens=30)
    chunks = await stream(http, prompt="x", max_tokens=30)
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["choices"][0]["text"]


async def test_several_prompts_with_several_choices_come_in_order() -> None:
    replies = {"one": "1111", "two": "2222"}
    model = Model(loaded=loaded(ScriptedRunner(replies)))
    async with serving(model) as server, httpx.AsyncClient(base_url=server.url) as http:
        answer = await ask(http, prompt=["one", "two"], n=2, max_tokens=4)
        choices = answer["choices"]
        assert [c["index"] for c in choices] == [0, 1, 2, 3]
        assert [c["text"] for c in choices] == ["1111", "1111", "2222", "2222"]
        assert answer["usage"]["prompt_tokens"] == 6  # a prompt counts once
        assert answer["usage"]["completion_tokens"] == 16
        texts = ["", "", "", ""]
        for chunk in await stream(http, prompt=["one", "two"], n=2, max_tokens=4):
            for choice in chunk["choices"]:
                texts[choice["index"]] += choice["text"]
        assert texts == ["1111", "1111", "2222", "2222"]


async def test_token_id_prompts_are_the_same_prompts(http: httpx.AsyncClient) -> None:
    text = await ask(http, prompt="hello")
    for prompt in (list(b"hello"), [list(b"hello")]):
        ids = await ask(http, prompt=prompt)
        assert ids["choices"] == text["choices"]
        assert ids["usage"]["prompt_tokens"] == 5
    two = await ask(http, prompt=[list(b"hello"), list(b"hi")])
    assert len(two["choices"]) == 2


async def test_text_parts_of_a_message_are_joined_by_newlines(http: httpx.AsyncClient) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    joined = await ask(http, messages=[{"role": "user", "content": "a\nb"}])
    in_parts = await ask(http, messages=[{"role": "user", "content": parts}])
    assert in_parts["usage"]["prompt_tokens"] == joined["usage"]["prompt_tokens"]


@pytest.fixture
async def whole_text() -> AsyncIterator[Server]:
    async with serving(scripted(TEXT)) as server:
        yield server


async def test_no_chunk_ends_inside_a_character(whole_text: Server) -> None:
    async with httpx.AsyncClient(base_url=whole_text.url) as http:
        for tokens in range(1, len(TEXT.encode()) + 1):
            chunks = await stream(http, prompt="P", max_tokens=tokens)
            texts = [chunk["choices"][0]["text"] for chunk in chunks]
            said = TEXT.encode()[:tokens].decode(errors="ignore")
            assert "".join(texts) == said


async def test_no_part_of_a_stop_string_leaks(whole_text: Server) -> None:
    async with httpx.AsyncClient(base_url=whole_text.url) as http:
        stops = ("🦙 and", "世界", "long tail", " a", "words.", "G")
        for stop, logprobs in itertools.product(stops, (None, 2)):
            before = TEXT[: TEXT.index(stop)]
            chunks = await stream(
                http, prompt="P", max_tokens=200, stop=["never", stop], logprobs=logprobs
            )
            text = ""
            for chunk in chunks:
                text += chunk["choices"][0]["text"]
                assert before.startswith(text)
            assert text == before
            assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
            if logprobs:
                tokens = [t for c in chunks for t in c["choices"][0]["logprobs"]["tokens"]]
                assert len(tokens) == len(before.encode())


async def test_chat_logprobs_have_openais_shape() -> None:
    async with (
        serving(scripted("")) as server,
        httpx.AsyncClient(base_url=server.url) as http,
    ):
        messages = [{"role": "user", "content": "hi"}]
        answer = await ask(http, messages=messages, logprobs=True, top_logprobs=2, max_tokens=3)
        content = answer["choices"][0]["logprobs"]["content"]
        assert [item["token"] for item in content] == ["H", "e", "l"]
        assert content[0] == {
            "token": "H",
            "logprob": -0.5,
            "bytes": [72],
            "top_logprobs": [
                {"token": "H", "logprob": -0.5, "bytes": [72]},
                {"token": "\0", "logprob": -1.5, "bytes": [0]},
            ],
        }
        chunks = await stream(http, messages=messages, logprobs=True, max_tokens=3)
        streamed = [t for c in chunks[1:] for t in c["choices"][0]["logprobs"]["content"]]
        assert [item["token"] for item in streamed] == ["H", "e", "l"]
        assert all(item["top_logprobs"] == [] for item in streamed)


async def test_completion_logprobs_have_openais_shape() -> None:
    async with (
        serving(scripted("né")) as server,
        httpx.AsyncClient(base_url=server.url) as http,
    ):
        answer = await ask(http, prompt="P", logprobs=1)
        choice = answer["choices"][0]
        assert choice["text"] == "né"
        assert choice["logprobs"] == {
            "tokens": ["n", "bytes:\\xc3", "bytes:\\xa9"],
            "token_logprobs": [-0.5, -0.5, -0.5],
            "top_logprobs": [{"n": -0.5}, {"bytes:\\xc3": -0.5}, {"bytes:\\xa9": -0.5}],
            "text_offset": [0, 1, 1],
        }
        zero = await ask(http, prompt="P", logprobs=0)
        assert zero["choices"][0]["logprobs"]["top_logprobs"] == choice["logprobs"]["top_logprobs"]
        none = await ask(http, prompt="P")
        assert none["choices"][0]["logprobs"] is None


async def test_ignore_eos_goes_on_to_the_length() -> None:
    async with (
        serving(scripted([65, EOS, 66, EOS, 67])) as server,
        httpx.AsyncClient(base_url=server.url) as http,
    ):
        assert (await ask(http, prompt="P"))["choices"][0]["text"] == "A"
        choice = (await ask(http, prompt="P", ignore_eos=True, max_tokens=5))["choices"][0]
        assert choice["text"] == "ABC"
        assert choice["finish_reason"] == "length"


async def test_timing_comes_only_when_asked_for(http: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": "x", "max_tokens": 3}
    asking = {"x-servewright-timing": "1"}
    plain = await http.post("/v1/completions", json=body)
    assert "server-timing" not in plain.headers
    timed = await http.post("/v1/completions", json=body, headers=asking)
    names = [part.split(";")[0] for part in timed.headers["server-timing"].split(", ")]
    assert names == ["queue", "prefill", "decode"]
    streamed = await http.post("/v1/completions", json={**body, "stream": True}, headers=asking)
    last = orjson.loads(sse(streamed.content)[-2])
    assert set(last["timing"]) == {"queue_s", "prefill_s", "decode_s"}
    assert all(seconds >= 0 for seconds in last["timing"].values())


async def test_an_answer_that_fails_after_its_beginning_ends_with_an_error_and_no_done() -> None:
    has_begun = threading.Event()
    steps = itertools.count(1)

    def fail_at_step_5(batch: object) -> None:
        if next(steps) == 5:
            assert has_begun.wait(WAIT_S)
            raise RuntimeError("injected")

    runner = ScriptedRunner(on_step=fail_at_step_5)
    async with (
        serving(Model(loaded=loaded(runner))) as server,
        httpx.AsyncClient(base_url=server.url) as http,
    ):
        body = {"model": "tiny", "prompt": "x", "max_tokens": 50, "stream": True}
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.status_code == 200
            has_begun.set()
            events = sse(await answer.aread())
        error = orjson.loads(events[-1])["error"]
        assert error["type"] == "server_error"
        assert b"[DONE]" not in events
        health = await http.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "failed"})
        refused = await http.post("/v1/completions", json=body)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]


async def test_an_answer_that_fails_before_its_beginning_has_the_status() -> None:
    runner = ScriptedRunner()
    runner.is_finite = False
    async with (
        serving(Model(loaded=loaded(runner))) as server,
        httpx.AsyncClient(base_url=server.url) as http,
    ):
        for is_stream in (False, True):
            body = {"model": "tiny", "prompt": "x", "stream": is_stream}
            answer = await http.post("/v1/completions", json=body)
            assert answer.status_code == 500
            assert answer.json()["error"]["type"] == "server_error"
