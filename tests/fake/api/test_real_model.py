"""The same properties with a real tokenizer, template and runner: a tiny random Llama."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import pytest_asyncio

from servewright_runtime.models import registry
from servewright_runtime.models.loaded import LoadedModel
from support.serving import Model, Server, serving, sse
from support.tiny import make_tiny_gguf


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    make_tiny_gguf(path)
    return path


@pytest.fixture
def model(gguf: Path) -> LoadedModel:
    return registry.load(
        gguf,
        format=None,
        kernel="Auto",
        num_blocks=lambda config: 512,
        threads=1,
        progress=lambda done, total: None,
    )


@pytest_asyncio.fixture
async def server(model: LoadedModel) -> AsyncIterator[Server]:
    async with serving(Model(loaded=model, max_model_len=512)) as running:
        yield running


async def complete(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": "Hello", "max_tokens": 24, **fields}
    answer = await http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


async def test_a_request_has_the_same_answer_alone_and_in_a_crowd(http: httpx.AsyncClient) -> None:
    fields = {"seed": 7, "logprobs": 3, "temperature": 0.9}
    alone = await complete(http, **fields)
    others = [complete(http, prompt=f"other {i} " * i, seed=i) for i in range(1, 12)]
    again, *_ = await asyncio.gather(complete(http, **fields), *others)
    assert again["choices"] == alone["choices"]


async def test_choice_i_has_seed_plus_i(http: httpx.AsyncClient) -> None:
    together = await complete(http, seed=2**64 - 1, n=3)
    texts = [choice["text"] for choice in together["choices"]]
    for text, seed in zip(texts, (2**64 - 1, 0, 1), strict=True):
        alone = await complete(http, seed=seed)
        assert alone["choices"][0]["text"] == text
    assert len(set(texts)) == 3


async def test_without_a_seed_answers_differ(http: httpx.AsyncClient) -> None:
    texts = [(await complete(http))["choices"][0]["text"] for _ in range(3)]
    assert len(set(texts)) == 3


async def test_streams_chats_and_tokens_agree(http: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello 🦙"}],
        "temperature": 0,
        "max_tokens": 40,
        "ignore_eos": True,
    }
    whole = (await http.post("/v1/chat/completions", json=body)).json()
    answer = await http.post("/v1/chat/completions", json={**body, "stream": True})
    chunks = [orjson.loads(event) for event in sse(answer.content)[:-1]]
    streamed = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert streamed == whole["choices"][0]["message"]["content"]
    prompt = {"model": "tiny", "messages": body["messages"]}
    tokens = (await http.post("/tokenize", json=prompt)).json()
    assert tokens["count"] == whole["usage"]["prompt_tokens"]
    as_ids = await complete(
        http, prompt=tokens["tokens"], temperature=0, max_tokens=40, ignore_eos=True
    )
    assert as_ids["choices"][0]["text"] == streamed


async def test_a_stop_string_cuts_random_text_before_it(http: httpx.AsyncClient) -> None:
    fields = {"temperature": 0, "max_tokens": 60, "ignore_eos": True}
    text = (await complete(http, **fields))["choices"][0]["text"]
    for start in range(0, len(text) - 3, 7):
        stop = text[start : start + 3]
        choice = (await complete(http, stop=stop, **fields))["choices"][0]
        assert choice["text"] == text[: text.index(stop)]
        assert choice["finish_reason"] == "stop"


async def test_logprobs_spell_the_text(http: httpx.AsyncClient) -> None:
    answer = await complete(http, logprobs=2, seed=3, max_tokens=60, ignore_eos=True)
    choice = answer["choices"][0]
    shown = choice["logprobs"]
    assert len(shown["tokens"]) == 60
    for token, offset in zip(shown["tokens"], shown["text_offset"], strict=True):
        if not token.startswith(("bytes:", "<|", "<unused")):
            assert choice["text"][offset:].startswith(token)
    for token, logprob, top in zip(
        shown["tokens"], shown["token_logprobs"], shown["top_logprobs"], strict=True
    ):
        assert top[token] == logprob
        assert 2 <= len(top) <= 3
        assert logprob <= 0
