"""Schema errors as sentences: what was wanted, what came, what to do."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any

from pydantic_core import ErrorDetails

from servewright_api import values
from servewright_api.fields import type_at
from servewright_api.later import LATER_FIELDS, LATER_FORMATS
from servewright_api.modelservice import API_VERSION, KIND
from servewright_api.quantity import CPU_PATTERN, MEMORY_PATTERN

_VERSION = f"{KIND} {API_VERSION.partition('/')[2]}"

# What a pattern means, for people. Every pattern of the schema is in here.
PATTERN_WORDS = {
    values.LABEL_PATTERN: "lower-case letters, digits and inner hyphens, such as team-a",
    values.NAME_PATTERN: (
        "lower-case letters, digits and inner hyphens, a letter first, such as smollm2"
    ),
    values.SUBDOMAIN_PATTERN: "lower-case letters, digits and inner hyphens and dots",
    values.SERVED_NAME_PATTERN: "letters, digits and inner . _ : / -, such as org/model-7b",
    values.LABEL_KEY_PATTERN: "a label key such as team or example.com/team",
    values.LABEL_VALUE_PATTERN: "letters, digits and inner . _ -",
    values.DIGEST_PATTERN: "sha256: and 64 lower-case hexadecimal digits",
    values.DATA_KEY_PATTERN: "letters, digits and . _ -, such as ca.crt",
    values.ENV_NAME_PATTERN: "letters, digits and _, no digit first, such as HTTPS_PROXY",
    values.IMAGE_PATTERN: "an image such as registry.example/runtime:0.1.0",
    values.PERCENT_PATTERN: "a whole number or a percentage, such as 1 or 25%",
    MEMORY_PATTERN: "a quantity such as 512Mi or 1.5Gi",
    CPU_PATTERN: "a number of CPUs such as 2, 0.5 or 500m",
}

_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of fields to values",
}


def field_path(loc: Sequence[int | str]) -> str:
    """("spec", "pod", "env", 0, "name") as "spec.pod.env[0].name"."""
    parts = [part for part in loc if part != "[key]"]
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{plain(part)}" for part in parts)
    return text.removeprefix(".")


def plain(value: object) -> str:
    """Text that may hold anything, in a form that keeps a message on one short line."""
    text = str(value)
    line = text if text.isprintable() else ascii(text)
    return line if len(line) <= 80 else f"{line[:77]}..."


def sentence(error: ErrorDetails) -> str:
    """What is wrong with the field, and the cure."""
    context: dict[str, Any] = error.get("ctx", {})
    value = error["input"]
    match error["type"]:
        case "extra_forbidden":
            return _unknown_field(error["loc"])
        case "missing":
            return "is missing; it must be given."
        case "literal_error":
            return _wrong_word(error["loc"], value, str(context["expected"]))
        case "string_pattern_mismatch":
            return f"must be {PATTERN_WORDS[context['pattern']]}, but {shown(value)} came."
        case "string_too_short":
            return "must not be empty; write something or leave the field out."
        case "string_too_long":
            return f"must hold at most {context['max_length']} characters, but holds {len(value)}."
        case "too_long":
            return f"must hold at most {context['max_length']} entries, but holds {len(value)}."
        case "greater_than_equal":
            return f"must be at least {context['ge']}, but {shown(value)} came."
        case "less_than_equal":
            return f"must be at most {context['le']}, but {shown(value)} came."
        case "value_error":
            return f"{context['error']}, but {shown(value)} came."
        case kind if kind in _KINDS:
            return f"must be {_KINDS[kind]}, but {shown(value)} came."
        case _:
            return f"{error['msg']}."


def shown(value: object) -> str:
    """The value as YAML has it, short enough for a sentence."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return plain(json.dumps(value, ensure_ascii=False, default=repr))


def _unknown_field(loc: Sequence[int | str]) -> str:
    path = field_path(loc)
    if path in LATER_FIELDS:
        return "is planned and not in this version; leave it out."
    owner = type_at(loc[:-1])
    known = [field.alias or name for name, field in owner.model_fields.items()] if owner else []
    close = difflib.get_close_matches(str(loc[-1]), known, n=1)
    cure = f"did you mean {close[0]}?" if close else "remove it."
    return f"is not a field of {_VERSION}; {cure}"


def _wrong_word(loc: Sequence[int | str], value: object, expected: str) -> str:
    if field_path(loc) == "spec.model.format" and value in LATER_FORMATS:
        return f"{value} is planned and not in this version; only gguf is served."
    return f"must be {expected.replace(chr(39), '')}, but {shown(value)} came."
