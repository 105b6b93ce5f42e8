"""Bodies nobody would write: an error that names a field, never another exception."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from servewright_runtime.api.openai.params import Chat, Completion, parse_chat, parse_completion
from servewright_runtime.errors import RequestError
from support.bodies import any_body


def outcome(body: dict[str, Any], *, is_chat: bool) -> Chat | Completion | RequestError:
    try:
        return parse_chat(body) if is_chat else parse_completion(body)
    except RequestError as error:
        return error


@given(any_body(), st.booleans())
def test_a_body_is_understood_or_refused_with_a_bounded_sentence(
    body: dict[str, Any], is_chat: bool
) -> None:
    result = outcome(body, is_chat=is_chat)
    if isinstance(result, RequestError):
        assert result.status == 400
        assert result.param
        assert result.code
        assert len(str(result)) < 500
    else:
        assert isinstance(result, Chat if is_chat else Completion)
        assert result.generation.sampling_of(0, 1, 0).max_tokens == 1
