"""Request bodies to validated data: bounds, defaults, names in errors."""

from __future__ import annotations

import re
from typing import Any

import pytest

from servewright_runtime.api.openai.params import parse_chat, parse_completion
from servewright_runtime.api.openai.refused import REFUSED_CHAT, REFUSED_COMPLETIONS
from servewright_runtime.engine.requests import SamplingParams
from servewright_runtime.errors import RequestError

HI = {"role": "user", "content": "hi"}


def test_a_bare_request_has_openais_defaults() -> None:
    generation = parse_chat({"model": "m", "messages": [HI]}).generation
    assert generation.sampling == SamplingParams()
    assert generation.max_tokens is None
    assert (generation.n, generation.seed, generation.is_stream) == (1, None, False)


def test_every_sampling_field_reaches_the_engine() -> None:
    body = {
        "model": "m",
        "prompt": ["a", "b"],
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.1,
        "seed": -1,
        "n": 3,
        "stop": "x",
        "logprobs": 5,
        "logit_bias": {"7": -100, "3": 1.5},
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "repetition_penalty": 1.1,
        "ignore_eos": True,
        "max_tokens": 9,
    }
    generation = parse_completion(body).generation
    assert generation.sampling_of(2, 9, generation.first_seed()) == SamplingParams(
        temperature=0.0,
        top_p=0.5,
        top_k=7,
        min_p=0.1,
        seed=1,  # -1 + 2, in 64 bits
        presence_penalty=1.0,
        frequency_penalty=-1.0,
        repetition_penalty=1.1,
        logit_bias=((3, 1.5), (7, -100.0)),
        logprobs=True,
        top_logprobs=5,
        max_tokens=9,
        stop=("x",),
        ignore_eos=True,
    )


def test_without_a_seed_every_request_draws_its_own() -> None:
    generation = parse_completion({"model": "m", "prompt": "x"}).generation
    seeds = {generation.first_seed() for _ in range(50)}
    assert len(seeds) == 50
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_a_developer_message_is_a_system_message() -> None:
    chat = parse_chat({"model": "m", "messages": [{"role": "developer", "content": "x"}]})
    assert chat.messages == [{"role": "system", "content": "x"}]


def test_an_error_shows_no_more_than_a_glimpse_of_the_value() -> None:
    deep: Any = []
    for _ in range(1000):
        deep = [deep]
    for value in ("x" * 10_000, deep, {"x": deep}):
        with pytest.raises(RequestError) as refused:
            parse_chat({"model": "m", "messages": [HI], "temperature": value})
        assert len(str(refused.value)) < 120


def test_every_refused_field_is_named_whatever_its_value() -> None:
    values: tuple[Any, ...] = ([], {}, False, True, "x", 0, 1)
    for value in values:
        for name in REFUSED_CHAT:
            with pytest.raises(RequestError, match=f"^'{name}' is not supported: ") as refused:
                parse_chat({"model": "m", "messages": [HI], name: value})
            assert refused.value.param == name
        for name in REFUSED_COMPLETIONS:
            with pytest.raises(RequestError, match=f"^'{name}' is not supported: ") as refused:
                parse_completion({"model": "m", "prompt": "x", name: value})
            assert refused.value.param == name


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"seed": 2**64}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["a" * 257]}, "stop"),
        ({"stop": 3}, "stop"),
        ({"logprobs": 3}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {"1": 1, "01": 1}}, "logit_bias"),
        ({"logit_bias": []}, "logit_bias"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "stream_options.continuous_usage_stats",
        ),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema"),
        ({"response_format": "text"}, "response_format"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"user": 3}, "user"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"prompt": "x"}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [3]}, "messages[0]"),
        ({"messages": [HI, {"content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{**HI, "name": "Ann"}]}, "messages[0].name"),
        ({"messages": [{**HI, "tool_calls": []}]}, "messages[0].tool_calls"),
        ({"messages": [{**HI, "x": 1}]}, "messages[0].x"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "", "x": 1}]}]},
            "messages[0].content[0].x",
        ),
        ({"messages": [{"role": "user", "content": [{"type": 1}]}]}, "messages[0].content[0].type"),
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_chat_field_out_of_bounds_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError, match=re.escape(f"'{param}'")) as refused:
        parse_chat({"model": "tiny", "messages": [HI], **fields})
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [1, "x"]}, "prompt[1]"),
        ({"prompt": ["x", 1]}, "prompt[1]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": ["x"] * 1025}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"messages": [HI]}, "messages"),
        ({"max_completion_tokens": 3}, "max_completion_tokens"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_completion_field_out_of_bounds_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError, match=re.escape(f"'{param}'")) as refused:
        parse_completion({"model": "tiny", "prompt": "x", **fields})
    assert refused.value.param == param


def test_an_empty_list_is_called_one() -> None:
    with pytest.raises(RequestError, match="at least one message, not an empty list"):
        parse_chat({"model": "tiny", "messages": []})
