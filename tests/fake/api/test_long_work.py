"""Long work of one client keeps the event loop free for the others."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from servewright_runtime.models.loaded import LoadedModel
from support.scripted_model import ByteTemplate, ByteTokenizer, ScriptedRunner, loaded
from support.serving import WAIT_S, Model, Server, serving, until


class Blocking:
    """Work that lasts until the test lets it go."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.may_end = threading.Event()

    def __call__(self) -> None:
        self.began.set()
        assert self.may_end.wait(WAIT_S)


async def healthy_meanwhile(server: Server, work: Blocking, path: str, body: Any) -> httpx.Response:
    """Answer of a request that waits for `work`; /health must answer while it does."""
    async with httpx.AsyncClient(base_url=server.url, timeout=WAIT_S) as http:
        slow = asyncio.create_task(http.post(path, json=body))
        await until(work.began.is_set)
        assert (await http.get("/health")).status_code == 200
        assert not slow.done()
        work.may_end.set()
        return await slow


async def test_a_slow_template_does_not_block_health() -> None:
    work = Blocking()

    class Template(ByteTemplate):
        def render(
            self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool
        ) -> str:
            work()
            return super().render(messages, add_generation_prompt=add_generation_prompt)

    model = loaded(ScriptedRunner())
    model.tokenizer.chat_template = Template()
    async with serving(Model(loaded=model)) as server:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
        answer = await healthy_meanwhile(server, work, "/v1/chat/completions", body)
        assert answer.status_code == 200


async def test_encoding_a_long_text_does_not_block_health() -> None:
    work = Blocking()

    class Tokenizer(ByteTokenizer):
        def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
            work()
            return super().encode(text, add_special=add_special, parse_special=parse_special)

    plain = loaded(ScriptedRunner())
    model = LoadedModel(runner=plain.runner, tokenizer=Tokenizer(), format="test", bytes=0)
    async with serving(Model(loaded=model)) as server:
        body = {"model": "tiny", "prompt": "x" * 100_000}
        answer = await healthy_meanwhile(server, work, "/tokenize", body)
        assert answer.json()["count"] == 100_000


async def test_ten_megabytes_of_messages_are_checked_beside_the_loop(server: Server) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": ""}] * 100}
    body = {"model": "tiny", "messages": [message] * 3400}
    size = len(json.dumps(body))
    assert 9 << 20 < size < 10 << 20
    async with httpx.AsyncClient(base_url=server.url, timeout=WAIT_S) as http:
        slow = asyncio.create_task(http.post("/v1/chat/completions", json=body))
        answers = 0
        while not slow.done():
            answers += (await http.get("/health")).status_code == 200
        assert (await slow).json()["error"]["code"] == "context_length_exceeded"
        assert answers > 3
