"""Requests as validated data: from a JSON object to what shall be generated.

Bounds are stated here once; docs/openai-api.md lists them and a test compares.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from servewright_runtime.api.openai.fields import Fields, invalid, unsupported
from servewright_runtime.api.openai.inputs import parse_messages, parse_prompts
from servewright_runtime.api.openai.refused import REFUSED_CHAT, REFUSED_COMPLETIONS, TOOLS
from servewright_runtime.engine.requests import SamplingParams
from servewright_runtime.errors import RequestError

MAX_CHOICES = 128  # n
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024
# More than any context window; the bound that counts is the model's own.
MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Generation:
    """What both endpoints have in common. `sampling` lacks its seed and its max_tokens."""

    model: str
    sampling: SamplingParams
    max_tokens: int | None
    max_tokens_field: str  # the field the client used, for messages
    n: int
    seed: int | None
    is_stream: bool
    has_usage_chunk: bool

    def sampling_of(self, choice: int, max_tokens: int, seed: int) -> SamplingParams:
        """Parameters of choice 0 to n-1 of a prompt; each has a seed of its own."""
        return replace(self.sampling, seed=(seed + choice) % 2**64, max_tokens=max_tokens)

    def first_seed(self) -> int:
        """The seed given, or 64 random bits."""
        return self.seed if self.seed is not None else secrets.randbits(64)


@dataclass(frozen=True, slots=True)
class Completion:
    """A request to /v1/completions. Each prompt is text or token ids."""

    generation: Generation
    prompts: list[str | list[int]]


@dataclass(frozen=True, slots=True)
class Chat:
    """A request to /v1/chat/completions."""

    generation: Generation
    messages: list[dict[str, str]]


def parse_completion(body: Mapping[str, Any]) -> Completion:
    """Raises RequestError (400) naming the field at fault."""
    fields = Fields(body)
    logprobs = fields.whole("logprobs", 0, MAX_TOP_LOGPROBS)
    max_tokens = fields.whole("max_tokens", 1, MAX_TOKENS)
    prompts = parse_prompts(fields)
    fields.only("echo", [False], "the prompt is not repeated")
    best_of = fields.whole("best_of", 1, MAX_CHOICES)
    generation = _generation(
        fields,
        logprobs=logprobs is not None,
        top_logprobs=logprobs or 0,
        max_tokens=max_tokens,
        max_tokens_field="max_tokens",
    )
    if best_of is not None and best_of != generation.n:
        raise unsupported("best_of", "every choice that is generated is returned, as 'n' says")
    fields.close(REFUSED_COMPLETIONS)
    return Completion(generation, prompts)


def parse_chat(body: Mapping[str, Any]) -> Chat:
    """Raises RequestError (400) naming the field at fault."""
    fields = Fields(body)
    messages = parse_messages(fields)
    logprobs = fields.flag("logprobs")
    top_logprobs = fields.whole("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top_logprobs is not None and not logprobs:
        raise RequestError(
            "'top_logprobs' needs 'logprobs' to be true.",
            param="top_logprobs",
            code="invalid_value",
        )
    newer = "max_completion_tokens"
    if fields.has("max_tokens") and fields.has(newer):
        raise RequestError(
            f"'max_tokens' and '{newer}' are the same bound; send one of them.",
            param="max_tokens",
            code="invalid_value",
        )
    name = newer if fields.has(newer) else "max_tokens"
    max_tokens = fields.whole(name, 1, MAX_TOKENS)
    response_format = fields.take("response_format")
    if response_format is not None:
        _check_response_format(response_format)
    fields.only("modalities", [["text"]], 'only ["text"] is generated')
    fields.only("tool_choice", ["none"], TOOLS)
    generation = _generation(
        fields,
        logprobs=logprobs,
        top_logprobs=top_logprobs or 0,
        max_tokens=max_tokens,
        max_tokens_field=name,
    )
    fields.close(REFUSED_CHAT)
    return Chat(generation, messages)


def parse_model(fields: Fields) -> str:
    """The model's name, which must be given."""
    model = fields.text("model")
    if model is None:
        raise fields.missing("model")
    return model


def _generation(
    fields: Fields,
    *,
    logprobs: bool,
    top_logprobs: int,
    max_tokens: int | None,
    max_tokens_field: str,
) -> Generation:
    """Take the fields that both endpoints share."""
    model = parse_model(fields)
    sampling = SamplingParams(
        temperature=fields.number("temperature", 0, 2, default=1.0),
        top_p=fields.number("top_p", 0, 1, default=1.0, above_low=True),
        top_k=max(0, fields.whole("top_k", -1, 2**31 - 1) or 0),  # -1 is off as well, as vLLM's
        min_p=fields.number("min_p", 0, 1, default=0.0),
        presence_penalty=fields.number("presence_penalty", -2, 2, default=0.0),
        frequency_penalty=fields.number("frequency_penalty", -2, 2, default=0.0),
        repetition_penalty=fields.number("repetition_penalty", 0.01, 100, default=1.0),
        logit_bias=_logit_bias(fields),
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        stop=_stop(fields),
        ignore_eos=fields.flag("ignore_eos"),
    )
    n = fields.whole("n", 1, MAX_CHOICES)
    seed = fields.whole("seed", -(2**63), 2**64 - 1)
    is_stream = fields.flag("stream")
    has_usage_chunk = _stream_options(fields, is_stream=is_stream)
    fields.text("user")  # OpenAI's label for its own abuse monitoring; no answer depends on it
    fields.text("safety_identifier")  # the same, newer
    fields.only("store", [False], "nothing is stored")
    fields.only("service_tier", ["auto", "default"], "there is one tier")
    return Generation(
        model=model,
        sampling=sampling,
        max_tokens=max_tokens,
        max_tokens_field=max_tokens_field,
        n=n or 1,
        seed=None if seed is None else seed % 2**64,
        is_stream=is_stream,
        has_usage_chunk=has_usage_chunk,
    )


def _stream_options(fields: Fields, *, is_stream: bool) -> bool:
    """Whether the stream ends with a chunk of usage."""
    value = fields.take("stream_options")
    if value is None:
        return False
    options = Fields.of(value, "stream_options")
    if not is_stream:
        raise RequestError(
            "'stream_options' needs 'stream' to be true.",
            param="stream_options",
            code="invalid_value",
        )
    has_usage_chunk = options.flag("include_usage")
    options.only("include_obfuscation", [False], "chunks are not padded")
    options.close({"continuous_usage_stats": "usage comes once, in the last chunk"})
    return has_usage_chunk


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.take("stop")
    if value is None:
        return ()
    stops = [value] if type(value) is str else value
    wanted = f"a string or a list of at most {MAX_STOPS} strings"
    if type(stops) is not list or len(stops) > MAX_STOPS:
        raise invalid("stop", wanted, value)
    for stop in stops:
        if type(stop) is not str or not 0 < len(stop) <= MAX_STOP_CHARS:
            raise invalid("stop", f"{wanted} of 1 to {MAX_STOP_CHARS} characters", stop)
    return tuple(stops)


def _logit_bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    value = fields.take("logit_bias")
    if value is None:
        return ()
    wanted = "an object of token ids and numbers from -100 to 100"
    if type(value) is not dict:
        raise invalid("logit_bias", wanted, value)
    if len(value) > MAX_BIASES:
        raise invalid("logit_bias", f"an object of at most {MAX_BIASES} token ids", value)
    biases: dict[int, float] = {}
    for key, bias in value.items():
        # Nine digits hold every vocabulary; int() alone would also take "1_0", " 1" and "١".
        if not (key.isascii() and key.isdigit() and len(key) <= 9):
            raise invalid("logit_bias", wanted, key)
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise invalid(f"logit_bias.{key}", "a number from -100 to 100", bias)
        if int(key) in biases:
            raise invalid("logit_bias", "an object with each token id once", key)
        biases[int(key)] = float(bias)
    return tuple(sorted(biases.items()))


def _check_response_format(value: object) -> None:
    fields = Fields.of(value, "response_format")
    fields.only("type", ["text"], "output is not constrained")
    fields.close(dict.fromkeys(("json_schema", "schema"), "output is not constrained"))
