"""Frames and logprobs, byte for byte."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from servewright_runtime.api.openai.logprobs import FLOOR, LogprobTracker, chat_logprobs, token_name
from servewright_runtime.api.openai.params import parse_chat
from servewright_runtime.api.openai.wire import ChatWire, CompletionWire, Head, Wire
from servewright_runtime.engine.requests import FinishReason, Output, Timing, TokenLogprob, Usage
from support.scripted_model import EOS, ByteTokenizer
from support.serving import sse

HEAD = Head('id-"quoted"', 1_700_000_000, "a/model:7b ü", "rev-avx2")
TOKENIZER = ByteTokenizer()


def generation(**fields: Any) -> Any:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
    return parse_chat({**body, **fields}).generation


@pytest.mark.parametrize("has_usage", [False, True])
@pytest.mark.parametrize("wire_type", [ChatWire, CompletionWire])
@pytest.mark.parametrize("text", ["plain", 'quo"te\\ \n\r\t\0', "ünïcödé 🦙\u2028", ""])
def test_a_frame_is_one_line_of_json_with_the_text_unchanged(
    text: str, wire_type: type[ChatWire] | type[CompletionWire], has_usage: bool
) -> None:
    settings = generation(stream_options={"include_usage": has_usage})
    wire: Wire = wire_type(HEAD, TOKENIZER, 2, settings)
    token = TokenLogprob(65, -0.25, ((65, -0.25), (66, -2.0)))
    for ready, finish in ((None, None), (None, "stop"), ([(0, token)], None), ([], "length")):
        (event,) = sse(wire.frame(1, text, ready, finish))
        chunk = orjson.loads(event)
        assert (chunk["id"], chunk["model"]) == (HEAD.id, HEAD.model)
        assert ("usage" in chunk) == has_usage
        (choice,) = chunk["choices"]
        assert choice["index"] == 1
        assert choice["finish_reason"] == finish
        assert (choice["logprobs"] is None) == (ready is None)
        said = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
        assert said == text


def test_the_closing_frame_holds_what_was_asked_for() -> None:
    wire = ChatWire(HEAD, TOKENIZER, 1, generation())
    assert wire.closing(None, None) == b""
    (event,) = sse(wire.closing(Usage(3, 4, 2), Timing(1.0, 2.0, 3.0)))
    chunk = orjson.loads(event)
    assert chunk["choices"] == []
    assert chunk["usage"]["total_tokens"] == 7
    assert chunk["timing"] == {"queue_s": 1.0, "prefill_s": 2.0, "decode_s": 3.0}


def push(tracker: LogprobTracker, text: str, ids: bytes, **last: Any) -> list[int]:
    """Ids of the tokens that go out with `text`."""
    logprobs = [TokenLogprob(token, -1.0) for token in ids]
    output = Output("r", text, list(ids), logprobs, **last)
    return [item.token_id for _, item in tracker.push(output)]


def test_logprobs_wait_for_the_text_that_their_token_begins() -> None:
    tracker = LogprobTracker(TOKENIZER)
    assert push(tracker, "", b"S") == []  # held back: may begin a stop string
    assert push(tracker, "Sa", b"a") == [ord("S"), ord("a")]
    assert push(tracker, "", b"\xc3") == []  # half a character
    assert push(tracker, "ü", b"\xbc") == [0xC3, 0xBC]


def test_logprobs_of_a_stop_string_never_go_out() -> None:
    tracker = LogprobTracker(TOKENIZER)
    assert push(tracker, "x", b"x") == [ord("x")]
    assert push(tracker, "", b"S") == []
    assert push(tracker, "", b"T", finish_reason=FinishReason.STOP, stop_reason="ST") == []


def test_all_logprobs_go_out_when_the_length_ends_the_answer() -> None:
    tracker = LogprobTracker(TOKENIZER)
    assert push(tracker, "", b"S") == []
    ended = push(tracker, "S", b"\xc3", finish_reason=FinishReason.LENGTH)
    assert ended == [ord("S"), 0xC3]


def test_a_token_after_an_unfinished_character_stands_behind_its_replacement() -> None:
    tracker = LogprobTracker(TOKENIZER)
    assert push(tracker, "", b"\xc3") == []
    output = Output("r", "\ufffdx", [ord("x")], [TokenLogprob(ord("x"), -1.0)])
    assert [offset for offset, _ in tracker.push(output)] == [0, 1]


def test_a_token_is_named_by_its_text_its_bytes_or_its_name() -> None:
    assert token_name(65, TOKENIZER) == "A"
    assert token_name(0xFF, TOKENIZER) == "bytes:\\xff"
    assert token_name(EOS, TOKENIZER) == "<eos>"


def test_a_logprob_of_minus_infinity_is_openais_floor() -> None:
    token = TokenLogprob(EOS, float("-inf"), ((65, float("-inf")),))
    (shown,) = chat_logprobs([(0, token)], TOKENIZER)
    assert shown["logprob"] == FLOOR
    assert shown["bytes"] is None
    assert shown["top_logprobs"][0]["logprob"] == FLOOR
