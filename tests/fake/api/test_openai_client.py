"""The unmodified `openai` client, synchronous, asynchronous and streaming."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from support.scripted_model import DEFAULT_REPLY
from support.serving import Model, Server, serving, serving_in_thread

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


@pytest.fixture
def sync_server() -> Iterator[Server]:
    with serving_in_thread() as server:
        yield server


@pytest.fixture
def client(sync_server: Server) -> Iterator[openai.OpenAI]:
    url = f"{sync_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_the_sync_client_lists_and_retrieves_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "servewright"


def test_the_sync_client_chats(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO)
    assert answer.choices[0].message.content == DEFAULT_REPLY
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    prompt = len("user: hello\n") + 1
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == prompt
    assert answer.usage.completion_tokens == len(DEFAULT_REPLY.encode()) + 1  # with EOS
    assert answer.usage.total_tokens == prompt + answer.usage.completion_tokens


def test_the_sync_client_streams_a_chat_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == DEFAULT_REPLY
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(DEFAULT_REPLY.encode()) + 1
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_sync_client_streams_a_completion(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="tiny", prompt="x", max_tokens=5, stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello"
    assert chunks[-1].choices[0].finish_reason == "length"


def test_the_accumulating_stream_helper_works(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=HELLO) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == DEFAULT_REPLY


def test_errors_become_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-5", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="tiny", prompt="x", temperature=3)
    assert bad.value.param == "temperature"
    assert bad.value.type == "invalid_request_error"
    assert bad.value.request_id
    tool: ChatCompletionToolParam = {"type": "function", "function": {"name": "f"}}
    with pytest.raises(openai.BadRequestError) as tools:
        client.chat.completions.create(model="tiny", messages=HELLO, tools=[tool])
    assert tools.value.param == "tools"


async def test_the_async_client_runs_many_chats_at_once() -> None:
    async with (
        serving(Model(max_batch=4)) as server,
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
    ):

        async def chat(index: int) -> str:
            parts = []
            async for chunk in await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": f"hello {index}"}], stream=True
            ):
                parts.append(chunk.choices[0].delta.content or "")
            return "".join(parts)

        answers = await asyncio.gather(*(chat(index) for index in range(24)))
    assert set(answers) == {DEFAULT_REPLY}


async def test_a_client_that_leaves_the_stream_early_ends_the_request(server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hello"}],
            stream=True,
            extra_body={"ignore_eos": True},
        )
        async for _ in stream:
            break
        await stream.close()
        answer = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hello"}]
        )
    assert answer.choices[0].message.content == DEFAULT_REPLY
    assert server.engine.stats().running == 0
