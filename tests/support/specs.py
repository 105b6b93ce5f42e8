"""Random specs for property tests: near the bounds of every field, on both sides of them.

Drawn from the CRD's schema, so a new field is drawn too from the day it is there.
"""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

from servewright_operator import crdgen

SPEC = crdgen.schema()["properties"]["spec"]

_DIGEST = "sha256:" + "0a" * 32
_SOURCES = st.one_of(
    st.sampled_from(
        [
            "https://host/x",
            "http://host/x",
            "https://[::1]:8443/x?y#z",
            "https://me:pw@host/x",
            "https://host:65536/x",
            "https://host/",
            "pypi://dist==1.0+cpu/x/y.gguf",
            "pypi://dist==*/x",
            "pvc://claim/x",
            "pvc://Claim/x",
            "pvc://claim/../x",
            "hf://org/x",
            "x",
        ]
    ),
    st.builds(
        "{}://{}/{}".format,
        st.sampled_from(["https", "http", "pypi", "pvc", "ftp", "HTTPS"]),
        st.text("ab1.-:@[]=?#/ü %", max_size=8),
        st.text("ab./\\?# %ü\n", max_size=8),
    ),
)
_WORDS = st.sampled_from(
    [
        *("", "a", "a-b", "7b", "A_b", "a.b", "-a", "a b", "ü", "a\n", "example.com/a", "/a"),
        *("HOME", "RAY_X", "servewright.io/a", "app.kubernetes.io/name", "HTTPS_PROXY", "a@b:1"),
        *(_DIGEST, _DIGEST.upper(), "x" * 52, "x" * 64, "x" * 254, "x" * 4097),
    ]
)
_AMOUNTS = st.sampled_from(
    [
        *(0, 1, 4, 1000, 1001, -1, 2**40, 1.5, True),
        *("0", "0%", "1%", "25%", "100%", "101%", "025%", "1Gi", "512Mi", "0.3Ki", "2Pi", "1e3"),
        *("1500m", "0.5", "1.0001", "-1", "+1", "", "x", "1 Gi", "1Gi\n", "0e5", "99999999"),
    ]
)
_FLAWS = st.sampled_from([None, [], {}, 1, "1", 1.5, True, {"x": 1}, [None]])


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of a field, most of them valid."""
    if "x-kubernetes-int-or-string" in schema:
        return _AMOUNTS
    match schema["type"]:
        case "boolean":
            return st.booleans()
        case "integer":
            low, high = schema["minimum"], schema["maximum"]
            return st.sampled_from([low - 1, low, low + 1, high - 1, high, high + 1])
        case "string" if "enum" in schema:
            return st.sampled_from([*schema["enum"], "None"])
        case "string":
            return _WORDS
        case "array":
            return st.lists(values(schema["items"]), max_size=3)
        case _ if "additionalProperties" in schema:
            return st.dictionaries(_WORDS, values(schema["additionalProperties"]), max_size=3)
        case _:
            fields = {name: _flawed(values(field)) for name, field in schema["properties"].items()}
            needed = {name: fields[name] for name in schema.get("required", ())}
            rest = {name: fields[name] for name in fields if name not in needed}
            return st.fixed_dictionaries(needed, optional=rest)


def _flawed(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Now and then a value of another type."""
    return st.integers(0, 39).flatmap(lambda number: _FLAWS if number == 39 else strategy)


def _leaves(schema: dict[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """The schema of every field that is no group, by its path."""
    if "properties" not in schema:
        return {path: schema}
    found: dict[tuple[str, ...], Any] = {}
    for name, field in schema["properties"].items():
        found |= _leaves(field, (*path, name))
    return found


_CHANGES = [
    st.tuples(st.just(path), _flawed(_SOURCES if path == ("model", "source") else values(schema)))
    for path, schema in _leaves(SPEC).items()
]


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    """A small spec with a few fields set, about every second one valid."""
    spec: dict[str, Any] = {
        "model": {"source": draw(st.sampled_from(["https://h/x", "pvc://c/x"]))}
    }
    for path, value in draw(st.lists(st.one_of(_CHANGES), max_size=3)):
        place = spec
        for group in path[:-1]:
            place = place.setdefault(group, {})
        place[path[-1]] = copy.deepcopy(value)
    return spec
