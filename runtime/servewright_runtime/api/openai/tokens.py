"""Requests to /tokenize and /detokenize, in vLLM's shapes, as validated data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from servewright_runtime.api.openai.fields import Fields
from servewright_runtime.api.openai.inputs import parse_messages, parse_token_ids


@dataclass(frozen=True, slots=True)
class Tokenize:
    """Either `prompt` or `messages` is there. model: None is the only one served."""

    model: str | None
    prompt: str | None
    messages: list[dict[str, str]] | None
    add_generation_prompt: bool
    add_special: bool
    with_texts: bool


@dataclass(frozen=True, slots=True)
class Detokenize:
    """Ids whose text is wanted."""

    model: str | None
    ids: list[int]


def parse_tokenize(body: Mapping[str, Any]) -> Tokenize:
    """Raises RequestError (400) naming the field at fault."""
    fields = Fields(body)
    is_chat = fields.has("messages")
    request = Tokenize(
        model=fields.text("model"),
        prompt=None if is_chat else fields.text("prompt"),
        messages=parse_messages(fields) if is_chat else None,
        add_generation_prompt=is_chat and fields.flag("add_generation_prompt", default=True),
        add_special=fields.flag("add_special_tokens", default=not is_chat),
        with_texts=fields.flag("return_token_strs"),
    )
    if not is_chat and request.prompt is None:
        raise fields.missing("prompt")
    fields.close({})
    return request


def parse_detokenize(body: Mapping[str, Any]) -> Detokenize:
    """Raises RequestError (400) naming the field at fault."""
    fields = Fields(body)
    request = Detokenize(fields.text("model"), parse_token_ids(fields, "tokens"))
    fields.close({})
    return request
