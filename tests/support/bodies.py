"""Request bodies for fuzzing: valid ones, valid ones with something wrong, and any JSON."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st

# No lone surrogates: JSON that reaches the server is UTF-8.
_text = st.text(st.characters(codec="utf-8"), max_size=20)
_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _text
)
any_json = st.recursive(
    _scalars,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(_text, children, max_size=4),
    max_leaves=8,
)

_message = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "developer", "user", "assistant"]),
        "content": _text
        | st.lists(
            st.fixed_dictionaries({"type": st.just("text"), "text": _text}), min_size=1, max_size=3
        ),
    }
)
_common: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": st.integers(1, 8),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.1, 1),
    "top_k": st.integers(-1, 50),
    "min_p": st.floats(0, 1),
    "seed": st.integers(-(2**63), 2**64 - 1),
    "n": st.integers(1, 4),
    "stop": _text | st.lists(_text, max_size=3),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.5, 2),
    "logit_bias": st.dictionaries(st.integers(0, 300).map(str), st.floats(-100, 100), max_size=3),
    "ignore_eos": st.booleans(),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "user": _text,
    "service_tier": st.sampled_from(["auto", "default", "flex"]),
    "store": st.booleans(),
}
chat_bodies = st.fixed_dictionaries(
    {"model": st.just("tiny"), "messages": st.lists(_message, min_size=1, max_size=3)},
    optional={**_common, "logprobs": st.booleans(), "top_logprobs": st.integers(0, 20)},
)
completion_bodies = st.fixed_dictionaries(
    {
        "model": st.just("tiny"),
        "prompt": _text
        | st.lists(_text, max_size=3)
        | st.lists(st.integers(0, 257), max_size=5)
        | st.lists(st.lists(st.integers(0, 257), min_size=1, max_size=5), max_size=3),
    },
    optional={**_common, "logprobs": st.integers(0, 20), "echo": st.booleans()},
)


@st.composite
def mutated(draw: st.DrawFn, bodies: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    """A valid body in which one value, at any depth, became something else."""
    body = draw(bodies)
    place: Any = body
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys)) if keys else None
        if key is None:
            return body
        if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
            place = place[key]
            continue
        place[key] = draw(any_json)
        return body


def any_body() -> st.SearchStrategy[dict[str, Any]]:
    """Any of them."""
    return st.one_of(
        chat_bodies,
        completion_bodies,
        mutated(chat_bodies),
        mutated(completion_bodies),
        st.dictionaries(_text, any_json, max_size=5),
    )
