"""Objects with fields that are missing, or are not what they should be."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

_ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**40), 2**40),
    st.text(max_size=5),
    st.just([]),
    st.just([None, "x", {}]),
    st.just({}),
    st.just("2026-11-23T04:00:00"),
    st.just("9999-12-31T23:59:59Z"),
)


def spoil(data: st.DataObject, value: Any, *, most: int = 4) -> None:
    """Replace or remove up to `most` values somewhere below `value`."""
    for _ in range(data.draw(st.integers(0, most))):
        places = _places(value)
        if not places:
            return
        holder, key = data.draw(st.sampled_from(places))
        if isinstance(holder, dict) and data.draw(st.booleans()):
            del holder[key]
        else:
            holder[key] = copy.deepcopy(data.draw(_ODD))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (mapping or list, key) below `value`."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [place for key in keys for place in [(value, key), *_places(value[key])]]
