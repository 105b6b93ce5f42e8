"""docs/openai-api.md and the code say the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from servewright_runtime.api.openai import inputs, params, refused
from servewright_runtime.api.openai.params import parse_chat, parse_completion
from servewright_runtime.api.protocol import Guards
from servewright_runtime.api.state import Bounds
from servewright_runtime.errors import RequestError

PAGE = (Path(__file__).parents[3] / "docs" / "openai-api.md").read_text()
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "x"}


def section(title: str) -> str:
    """The text under a heading."""
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def fields(title: str) -> set[str]:
    """Names in the first column of a section's table."""
    rows = re.findall(r"^\| (`.*?`) \|", section(title), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def is_known(body: dict[str, Any], name: str, *, is_chat: bool) -> bool:
    """Whether the endpoint reads the field: an impossible value is then no unknown parameter."""
    try:
        (parse_chat if is_chat else parse_completion)({**body, name: object})
    except RequestError as error:
        return error.code not in ("unknown_parameter", "unsupported_parameter")
    except KeyError:  # a value that JSON cannot hold was looked at
        return True
    return True


@pytest.mark.parametrize("is_chat", [True, False])
def test_every_documented_field_is_read(is_chat: bool) -> None:
    body = CHAT if is_chat else COMPLETION
    own = "Fields of /v1/chat/completions" if is_chat else "Fields of /v1/completions"
    documented = fields("Fields of both") | fields(own)
    only_some_values = {"echo", "store", "service_tier", "modalities", "tool_choice"}
    for name in documented - only_some_values:
        assert is_known(body, name, is_chat=is_chat), name


def test_every_field_of_the_code_is_documented() -> None:
    source = Path(params.__file__).read_text() + Path(inputs.__file__).read_text()
    read = set(re.findall(r'fields\.(?:take|flag|whole|number|text|only)\(\s*"(\w+)"', source))
    assert read > {"temperature", "stop", "messages"}
    in_parts = {"role", "content", "annotations", "type", "text"}
    titles = ("Fields of both", "Fields of /v1/chat/completions", "Fields of /v1/completions")
    documented = set().union(*map(fields, titles))
    assert read - in_parts <= documented
    named = set(re.findall(r"`(\w+)`", section("Refused by name")))
    wanted = {*refused.REFUSED_CHAT, *refused.REFUSED_COMPLETIONS, *refused.REFUSED_MESSAGE}
    assert named - {"tool", "function"} == wanted


def test_the_bounds_are_those_of_the_code() -> None:
    both = section("Fields of both")
    assert f"1 to {params.MAX_CHOICES}" in both
    assert f"up to {params.MAX_STOPS}, of 1 to {params.MAX_STOP_CHARS} characters" in both
    assert f"up to {params.MAX_BIASES} token ids" in both
    assert f"0 to {params.MAX_TOP_LOGPROBS}" in section("Fields of /v1/completions")
    assert f"up to {inputs.MAX_PROMPTS} prompts" in section("Fields of /v1/completions")
    errors, bounds, guards = section("Errors"), Bounds(), Guards()
    assert f"within {bounds.body_timeout_s:.0f} s" in errors
    assert f"over {bounds.body_bytes >> 20} MiB" in errors
    assert f"over {guards.head_bytes >> 10} KiB" in errors
    assert f"over {guards.connections} connections" in errors
    connections = section("Connections")
    assert f"within {guards.head_timeout_s:.0f} s" in connections
    assert f"for {guards.write_timeout_s:.0f} s" in connections
