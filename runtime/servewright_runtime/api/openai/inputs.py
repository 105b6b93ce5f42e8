"""What a request is about: prompts and messages, checked."""

from __future__ import annotations

from typing import Any

from servewright_runtime.api.openai.fields import Fields, invalid, unsupported
from servewright_runtime.api.openai.refused import REFUSED_MESSAGE, REFUSED_PARTS, TEXT, TOOLS
from servewright_runtime.errors import RequestError

MAX_PROMPTS = 1024  # of one completions request


def parse_prompts(fields: Fields) -> list[str | list[int]]:
    """A string, a list of strings, token ids or a list of those."""
    value = fields.take("prompt")
    if value is None:
        raise fields.missing("prompt")
    wanted = "a string, a list of strings, token ids or a list of lists of token ids"
    if type(value) is str:
        return [value]
    if type(value) is not list or not value:
        raise invalid("prompt", wanted + " with at least one", value)
    if type(value[0]) is int:
        return [_token_ids(value, "prompt")]
    if len(value) > MAX_PROMPTS:
        raise RequestError(
            f"'prompt' has {len(value)} prompts, of at most {MAX_PROMPTS}; send several requests.",
            param="prompt",
            code="invalid_value",
        )
    prompts: list[str | list[int]] = []
    for index, item in enumerate(value):
        if type(item) is not type(value[0]) or type(item) not in (str, list):
            raise invalid(f"prompt[{index}]", f"of the kind of the others ({wanted})", item)
        prompts.append(item if type(item) is str else _token_ids(item, f"prompt[{index}]"))
    return prompts


def _token_ids(value: list[Any], path: str) -> list[int]:
    if not set(map(type, value)) <= {int}:  # in C: there may be millions
        index = next(index for index, item in enumerate(value) if type(item) is not int)
        raise invalid(f"{path}[{index}]", "a token id", value[index])
    if not value:
        raise invalid(path, "at least one token id", value)
    return value


def parse_token_ids(fields: Fields, name: str) -> list[int]:
    """A list of token ids, empty or not."""
    value = fields.take(name)
    if value is None:
        raise fields.missing(name)
    if type(value) is not list:
        raise invalid(fields.at(name), "a list of token ids", value)
    return _token_ids(value, fields.at(name)) if value else []


def parse_messages(fields: Fields) -> list[dict[str, str]]:
    """Messages as a chat template takes them: a role and a text each."""
    value = fields.take("messages")
    if value is None:
        raise fields.missing("messages")
    if type(value) is not list or not value:
        raise invalid("messages", "a list of at least one message", value)
    return [_message(item, f"messages[{index}]") for index, item in enumerate(value)]


def _message(value: object, path: str) -> dict[str, str]:
    fields = Fields.of(value, path)
    role = fields.text("role")
    if role is None:
        raise fields.missing("role")
    if role in ("tool", "function"):
        raise unsupported(f"{path}.role", f"{TOOLS}, so there is no '{role}' message")
    if role not in ("system", "developer", "user", "assistant"):
        raise invalid(f"{path}.role", "system, developer, user or assistant", role)
    content = _content(fields, path)
    if fields.take("annotations"):  # an answer of OpenAI's own, sent back, has an empty list
        raise unsupported(f"{path}.annotations", TEXT)
    fields.close(REFUSED_MESSAGE)
    # A model's template knows "system"; "developer" is OpenAI's later word for it.
    return {"role": "system" if role == "developer" else role, "content": content}


def _content(fields: Fields, path: str) -> str:
    value = fields.take("content")
    if value is None:
        raise fields.missing("content")
    if type(value) is str:
        return value
    if type(value) is not list or not value:
        raise invalid(f"{path}.content", "a string or a list of text parts", value)
    return "\n".join(_part(item, f"{path}.content[{index}]") for index, item in enumerate(value))


def _part(value: object, path: str) -> str:
    fields = Fields.of(value, path)
    kind = fields.text("type")
    if kind is None:
        raise fields.missing("type")
    if kind in REFUSED_PARTS:
        raise unsupported(f"{path}.type", f"{TEXT}, so there is no {kind!r} part")
    if kind != "text":
        raise invalid(f"{path}.type", "'text'", kind)
    text = fields.text("text")
    if text is None:
        raise fields.missing("text")
    fields.close({})
    return text
