"""The two wire formats: whole answers and SSE frames.

Everything in a frame but its text is encoded once a request, so a chunk costs one encoding of its
text and one join of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from servewright_runtime.api.openai.logprobs import chat_logprobs, completion_logprobs
from servewright_runtime.api.openai.params import Generation
from servewright_runtime.engine.requests import Timing, TokenLogprob, Usage
from servewright_runtime.models.loaded import Tokenizer

DONE = b"data: [DONE]\n\n"

Ready = list[tuple[int, TokenLogprob]]


@dataclass(frozen=True, slots=True)
class Head:
    """What all chunks of an answer share."""

    id: str
    created: int  # Unix seconds
    model: str
    fingerprint: str


@dataclass(slots=True)
class Choice:
    """A finished choice, or one that grows."""

    text: list[str] = field(default_factory=list)
    logprobs: Ready = field(default_factory=list)
    finish_reason: str | None = None


class Wire(Protocol):
    """One endpoint's way to write an answer."""

    def opening(self) -> bytes:
        """Frames before the first text."""

    def frame(self, index: int, text: str, ready: Ready | None, finish: str | None) -> bytes:
        """A frame of one choice. ready: None where logprobs were not asked for."""

    def closing(self, usage: Usage | None, timing: Timing | None) -> bytes:
        """The frame after the last choice: usage and timing, as far as they were asked for."""

    def whole(self, choices: Sequence[Choice], usage: Usage, *, logprobs: bool) -> bytes:
        """The answer in one piece."""


def usage_json(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


class _Frames:
    """The envelope of a chunk: `data: {"id": ..., "choices": [CHOICE]}`."""

    def __init__(self, head: Head, kind: str, generation: Generation) -> None:
        self._common = {
            "id": head.id,
            "object": kind,
            "created": head.created,
            "model": head.model,
            "system_fingerprint": head.fingerprint,
        }
        self.start = b"data: " + orjson.dumps(self._common)[:-1] + b',"choices":['
        # With include_usage every chunk has the field, null in all but the last.
        self.end = b'],"usage":null}\n\n' if generation.has_usage_chunk else b"]}\n\n"

    def closing(self, usage: Usage | None, timing: Timing | None) -> bytes:
        if usage is None and timing is None:
            return b""
        chunk: dict[str, Any] = {**self._common, "choices": []}
        if usage is not None:
            chunk["usage"] = usage_json(usage)
        if timing is not None:
            chunk["timing"] = timing_json(timing)
        return b"data: " + orjson.dumps(chunk) + b"\n\n"


def timing_json(timing: Timing) -> dict[str, float]:
    """Seconds of each phase."""
    return {
        "queue_s": timing.queue_s,
        "prefill_s": timing.prefill_s,
        "decode_s": timing.decode_s,
    }


class ChatWire:
    """/v1/chat/completions."""

    def __init__(
        self, head: Head, tokenizer: Tokenizer, choices: int, generation: Generation
    ) -> None:
        self._head = head
        self._tokenizer = tokenizer
        self._frames = _Frames(head, "chat.completion.chunk", generation)
        start, end = self._frames.start, self._frames.end
        self._starts = [b'%b{"index":%d,"delta":' % (start, index) for index in range(choices)]
        self._plain_end = b'},"logprobs":null,"finish_reason":null}' + end
        self._end = end

    def opening(self) -> bytes:
        role = b'{"role":"assistant","content":""'
        return b"".join(start + role + self._plain_end for start in self._starts)

    def frame(self, index: int, text: str, ready: Ready | None, finish: str | None) -> bytes:
        start = self._starts[index]
        if finish is None and ready is None:
            return start + b'{"content":' + orjson.dumps(text) + self._plain_end
        delta = orjson.dumps({"content": text} if text or ready else {})
        logprobs = None if ready is None else {"content": chat_logprobs(ready, self._tokenizer)}
        return b'%b%b,"logprobs":%b,"finish_reason":%b}%b' % (
            start, delta, orjson.dumps(logprobs), orjson.dumps(finish), self._end,
        )  # fmt: skip

    def closing(self, usage: Usage | None, timing: Timing | None) -> bytes:
        return self._frames.closing(usage, timing)

    def whole(self, choices: Sequence[Choice], usage: Usage, *, logprobs: bool) -> bytes:
        return _whole(
            self._head,
            "chat.completion",
            [
                {
                    "index": index,
                    "message": {
                        "role": "assistant",
                        "content": "".join(choice.text),
                        "refusal": None,
                    },
                    "logprobs": {"content": chat_logprobs(choice.logprobs, self._tokenizer)}
                    if logprobs
                    else None,
                    "finish_reason": choice.finish_reason,
                }
                for index, choice in enumerate(choices)
            ],
            usage,
        )


class CompletionWire:
    """/v1/completions."""

    def __init__(
        self, head: Head, tokenizer: Tokenizer, choices: int, generation: Generation
    ) -> None:
        self._head = head
        self._tokenizer = tokenizer
        self._frames = _Frames(head, "text_completion", generation)
        start, end = self._frames.start, self._frames.end
        self._starts = [b'%b{"index":%d,"text":' % (start, index) for index in range(choices)]
        self._plain_end = b',"logprobs":null,"finish_reason":null}' + end
        self._end = end

    def opening(self) -> bytes:
        return b""

    def frame(self, index: int, text: str, ready: Ready | None, finish: str | None) -> bytes:
        start = self._starts[index] + orjson.dumps(text)
        if finish is None and ready is None:
            return start + self._plain_end
        logprobs = None if ready is None else completion_logprobs(ready, self._tokenizer)
        return b'%b,"logprobs":%b,"finish_reason":%b}%b' % (
            start, orjson.dumps(logprobs), orjson.dumps(finish), self._end,
        )  # fmt: skip

    def closing(self, usage: Usage | None, timing: Timing | None) -> bytes:
        return self._frames.closing(usage, timing)

    def whole(self, choices: Sequence[Choice], usage: Usage, *, logprobs: bool) -> bytes:
        return _whole(
            self._head,
            "text_completion",
            [
                {
                    "index": index,
                    "text": "".join(choice.text),
                    "logprobs": completion_logprobs(choice.logprobs, self._tokenizer)
                    if logprobs
                    else None,
                    "finish_reason": choice.finish_reason,
                }
                for index, choice in enumerate(choices)
            ],
            usage,
        )


def _whole(head: Head, kind: str, choices: list[dict[str, Any]], usage: Usage) -> bytes:
    return orjson.dumps(
        {
            "id": head.id,
            "object": kind,
            "created": head.created,
            "model": head.model,
            "system_fingerprint": head.fingerprint,
            "choices": choices,
            "usage": usage_json(usage),
        }
    )
