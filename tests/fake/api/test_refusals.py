"""Every request that is not served gets OpenAI's error body, the right status and a cure."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from servewright_runtime.api.openai.refused import REFUSED_CHAT, REFUSED_PARTS
from servewright_runtime.api.state import Bounds
from support.scripted_model import ScriptedRunner, loaded
from support.serving import Model, Server, serving

HI = {"role": "user", "content": "hi"}


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error of an answer that must have this status and every common header."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-servewright-revision"] == "rev-1"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith(".")
    return error


async def chat_error(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": [HI], **fields}
    return error_of(await http.post("/v1/chat/completions", json=body), 400)


async def completion_error(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": "x", **fields}
    return error_of(await http.post("/v1/completions", json=body), 400)


async def test_a_refused_field_is_named(http: httpx.AsyncClient) -> None:
    error = await chat_error(http, tools=[])
    assert (error["param"], error["code"]) == ("tools", "unsupported_parameter")
    error = await completion_error(http, suffix="x")
    assert (error["param"], error["code"]) == ("suffix", "unsupported_parameter")
    error = await completion_error(http, unheard_of=1)
    assert (error["param"], error["code"]) == ("unheard_of", "unknown_parameter")


async def test_null_means_not_given(http: httpx.AsyncClient) -> None:
    nothing = dict.fromkeys((*REFUSED_CHAT, "temperature", "stop", "stream_options", "n"))
    body = {**nothing, "model": "tiny", "messages": [HI]}
    assert (await http.post("/v1/chat/completions", json=body)).status_code == 200


async def test_what_only_the_model_knows_is_checked_too(http: httpx.AsyncClient) -> None:
    for fields, param in (
        ({"n": 100}, "n"),  # more sequences than the engine holds
        ({"prompt": ["x"] * 100}, "n"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["x", ""]}, "prompt[1]"),
        ({"prompt": [258]}, "prompt"),
        ({"prompt": [[1], [-1]]}, "prompt[1]"),
        ({"logit_bias": {"258": 1}}, "logit_bias"),
        ({"max_tokens": 100_000}, "max_tokens"),
    ):
        assert (await completion_error(http, **fields))["param"] == param


async def test_every_part_that_is_no_text_is_refused(http: httpx.AsyncClient) -> None:
    for kind in REFUSED_PARTS:
        part = {"type": kind, kind: {"url": "data:,"}}
        error = await chat_error(http, messages=[{"role": "user", "content": [part]}])
        assert error["param"] == "messages[0].content[0].type"
        assert error["code"] == "unsupported_parameter"


async def test_values_that_mean_what_happens_anyway_are_taken(http: httpx.AsyncClient) -> None:
    common = {
        "user": "someone",
        "safety_identifier": "someone",
        "store": False,
        "service_tier": "auto",
        "n": 1,
        "top_k": -1,
    }
    chat = {
        **common,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "tool_choice": "none",
        "messages": [{"role": "developer", "content": "be kind"}, {**HI, "tool_calls": None}],
    }
    for path, body in (
        ("/v1/chat/completions", chat),
        ("/v1/completions", {**common, "prompt": "x", "echo": False, "best_of": 1}),
    ):
        answer = await http.post(path, json={"model": "tiny", **body})
        assert answer.status_code == 200, answer.text


async def test_an_answer_of_openais_client_can_be_sent_back_as_a_message(
    http: httpx.AsyncClient,
) -> None:
    unset = dict.fromkeys(("refusal", "audio", "function_call", "tool_calls"))
    said: dict[str, Any] = {"role": "assistant", "content": "hello", "annotations": [], **unset}
    body = {"model": "tiny", "messages": [HI, said, HI]}
    assert (await http.post("/v1/chat/completions", json=body)).status_code == 200


async def test_a_prompt_that_is_too_long_is_told_both_numbers(http: httpx.AsyncClient) -> None:
    error = await completion_error(http, prompt="x" * 1024)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "prompt"
    assert "1024 tokens" in error["message"]
    messages = [{"role": "user", "content": "x" * 1016}]
    error = await chat_error(http, messages=messages)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "messages"
    assert "at most 1024 tokens" in error["message"]
    error = await completion_error(http, prompt="x" * 1000, max_tokens=100)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "max_tokens"
    assert all(number in error["message"] for number in ("1000", "100", "1100", "1024"))


async def test_a_prompt_far_too_long_is_refused_without_being_encoded(
    http: httpx.AsyncClient, server: Server
) -> None:
    error = await completion_error(http, prompt="x" * 5_000_000)
    assert error["code"] == "context_length_exceeded"
    assert "at least" in error["message"]
    assert "1024" in error["message"]


async def test_defaults_of_max_tokens_fill_what_room_there_is() -> None:
    endless = ScriptedRunner(default="x" * 2000)
    model = Model(loaded=loaded(endless), max_model_len=64, max_output_tokens=40)
    async with serving(model) as server, httpx.AsyncClient(base_url=server.url) as http:

        async def tokens(path: str, **body: Any) -> int:
            answer = await http.post(path, json={"model": "tiny", "ignore_eos": True, **body})
            assert answer.status_code == 200, answer.text
            count: int = answer.json()["usage"]["completion_tokens"]
            return count

        assert await tokens("/v1/completions", prompt="a") == 16
        assert await tokens("/v1/completions", prompt="a" * 60) == 4
        assert await tokens("/v1/chat/completions", messages=[HI]) == 40
        long = [{"role": "user", "content": "a" * 42}]
        assert await tokens("/v1/chat/completions", messages=long) == 64 - (6 + 42 + 1 + 1)
        answer = await http.post(
            "/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 41}
        )
        error = error_of(answer, 400)
        assert error["param"] == "max_tokens"
        assert "40" in error["message"]


async def test_json_that_is_none_is_told_the_position(http: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    for body in (
        b"",
        b"{",
        b'{"model": tiny}',
        b'{"a":1}x',
        b"\xff\xfe",
        b"[" * 5000,
        b'"\\ud800"',
    ):
        answer = await http.post("/v1/completions", content=body, headers=headers)
        error = error_of(answer, 400)
        assert error["code"] == "invalid_json"
        assert "line " in error["message"]
        assert "column " in error["message"]
    for body in (b"[]", b"1", b"null", b'"x"'):
        answer = await http.post("/v1/completions", content=body, headers=headers)
        assert error_of(answer, 400)["code"] == "invalid_type"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_other_content_types_are_415(
    http: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    answer = await http.post("/v1/completions", content=b"{}", headers=headers)
    error_of(answer, 415)


async def test_a_charset_of_utf8_is_fine(http: httpx.AsyncClient) -> None:
    headers = {"content-type": "Application/JSON; charset=UTF-8"}
    body = b'{"model": "tiny", "prompt": "x"}'
    assert (await http.post("/v1/completions", content=body, headers=headers)).status_code == 200


async def test_unknown_paths_are_404_and_wrong_methods_405(http: httpx.AsyncClient) -> None:
    for path in ("/", "/v1", "/v1/embeddings", "/v1/models/", "/v1/models/other", "/docs"):
        assert error_of(await http.get(path), 404)["type"] == "not_found_error"
    for method, path, allowed in (
        ("GET", "/v1/completions", "POST"),
        ("DELETE", "/v1/chat/completions", "POST"),
        ("POST", "/v1/models", "GET"),
        ("PUT", "/health", "GET"),
    ):
        answer = await http.request(method, path)
        error_of(answer, 405)
        assert allowed in answer.headers["allow"]


async def test_an_unknown_model_is_404(http: httpx.AsyncClient) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [HI]}),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": []}),
    ):
        answer = await http.post(path, json={"model": "x" * 500, **body})
        error = error_of(answer, 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert len(error["message"]) < 200


async def test_a_body_over_the_bound_is_413_whether_its_length_is_said_or_not() -> None:
    async with (
        serving(bounds=Bounds(body_bytes=1000)) as server,
        httpx.AsyncClient(base_url=server.url) as http,
    ):

        async def chunks() -> Any:
            for _ in range(200):
                yield b" " * 1000

        for content in (b" " * 200_000, chunks()):
            answer = await http.post(
                "/v1/completions", content=content, headers={"content-type": "application/json"}
            )
            assert "1000 bytes" in error_of(answer, 413)["message"]
            assert answer.headers["connection"] == "close"
        fits = b'{"model": "tiny", "prompt": "x"}'.ljust(1000)
        headers = {"content-type": "application/json"}
        answer = await http.post("/v1/completions", content=fits, headers=headers)
        assert answer.status_code == 200
        assert server.state.buffered_bytes == 0


async def test_chat_without_a_template_is_400() -> None:
    model = Model(loaded=loaded(ScriptedRunner(), has_template=False))
    async with serving(model) as server, httpx.AsyncClient(base_url=server.url) as http:
        error = await chat_error(http)
        assert error["code"] == "no_chat_template"
        assert "/v1/completions" in error["message"]


async def test_a_full_queue_is_429_with_retry_after() -> None:
    model = Model(max_batch=1, max_queued=1, max_concurrency=1)
    async with serving(model) as server, httpx.AsyncClient(base_url=server.url) as http:
        with server.models["tiny"].place():
            answer = await http.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
        error = error_of(answer, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert int(answer.headers["retry-after"]) >= 1
        answer = await http.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
        assert answer.status_code == 200


async def test_health_says_where_the_process_stands(
    server: Server, http: httpx.AsyncClient
) -> None:
    assert (await http.get("/health")).json() == {"status": "serving"}
    assert (await http.head("/health")).status_code == 200
    server.state.serving = False
    answer = await http.get("/health")
    assert (answer.status_code, answer.json()) == (503, {"status": "loading"})
    server.state.serving = server.state.draining = True
    answer = await http.get("/health")
    assert (answer.status_code, answer.json()) == (503, {"status": "draining"})
    assert answer.headers["connection"] == "close"


async def test_a_draining_server_still_answers_and_asks_to_close(
    server: Server, http: httpx.AsyncClient
) -> None:
    server.state.draining = True
    for is_stream in (False, True):
        body = {"model": "tiny", "prompt": "x", "stream": is_stream}
        answer = await http.post("/v1/completions", json=body)
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"
    answer = await http.get("/nothing")
    assert answer.headers.get_list("connection") == ["close"]


async def test_the_request_id_is_given_back_or_made(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/models", headers={"x-request-id": "abc-123"})
    assert answer.headers["x-request-id"] == "abc-123"
    made = set()
    for given in ("", "x" * 129, "with space", "tab\tbed"):
        answer = await http.get("/v1/models", headers={"x-request-id": given})
        made.add(answer.headers["x-request-id"])
    assert len(made) == 4
    assert all(len(one) == 32 for one in made)


async def test_the_revision_of_the_model_that_answered_is_told() -> None:
    models = (Model(revision="r1"), Model(name="second", revision="r2"))
    async with serving(*models) as server, httpx.AsyncClient(base_url=server.url) as http:
        for name, revision in (("tiny", "r1"), ("second", "r2")):
            answer = await http.post("/v1/completions", json={"model": name, "prompt": "x"})
            assert answer.headers["x-servewright-revision"] == revision
            refused = {"model": name, "prompt": "x" * 2000}
            answer = await http.post("/v1/completions", json=refused)
            assert answer.headers["x-servewright-revision"] == revision
        answer = await http.get("/v1/models")
        assert answer.headers["x-servewright-revision"] == "r1,r2"
        assert [model["id"] for model in answer.json()["data"]] == ["tiny", "second"]
        answer = await http.post("/tokenize", json={"prompt": "x"})
        assert answer.status_code == 400  # which of the two?
        assert answer.json()["error"]["param"] == "model"


async def test_tokenize_and_detokenize_have_vllms_shapes(http: httpx.AsyncClient) -> None:
    answer = await http.post("/tokenize", json={"prompt": "hé", "return_token_strs": True})
    assert answer.json() == {
        "count": 3,
        "max_model_len": 1024,
        "tokens": [104, 195, 169],
        "token_strs": ["h", "\ufffd", "\ufffd"],
    }
    answer = await http.post("/tokenize", json={"model": "tiny", "messages": [HI]})
    assert answer.json()["tokens"] == [*b"user: hi\n", 257]
    assert answer.json()["token_strs"] is None
    plain = {"messages": [HI], "add_generation_prompt": False}
    assert (await http.post("/tokenize", json=plain)).json()["tokens"] == [*b"user: hi\n"]
    answer = await http.post("/detokenize", json={"tokens": [104, 195, 169]})
    assert answer.json() == {"prompt": "hé"}
    assert (await http.post("/detokenize", json={"tokens": []})).json() == {"prompt": ""}
    chat = {"tokens": [*b"user: hi\n", 257]}  # back to what the template wrote
    assert (await http.post("/detokenize", json=chat)).json() == {"prompt": "user: hi\n<go>"}
    for path, body, param in (
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": [HI]}, "prompt"),
        ("/tokenize", {"prompt": "x", "add_generation_prompt": True}, "add_generation_prompt"),
        ("/detokenize", {"tokens": [258]}, "tokens"),
        ("/detokenize", {"tokens": ["x"]}, "tokens[0]"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [], "x": 1}, "x"),
    ):
        assert error_of(await http.post(path, json=body), 400)["param"] == param
