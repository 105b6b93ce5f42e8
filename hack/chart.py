"""The operator chart's values.schema.json and the table of its README, both from values.yaml.

The comment right above a key is its description; the key's default gives its type. A line
`# @schema {...}` says what a default alone cannot (the items of an empty list, an enum, a pattern)
as JSON schema. Every object is closed, so a misspelt key fails the install, unless `@schema` names
the type of its other keys (labels and the like).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CHART = Path("charts/servewright")
VALUES = CHART / "values.yaml"
BEGIN = "<!-- values: written by `make gen` from values.yaml, not by hand -->\n"
END = "<!-- end of values -->\n"

_TYPES = {bool: "boolean", int: "integer", str: "string", list: "array", dict: "object"}
_TAG = "@schema "


class Value(NamedTuple):
    """A key of values.yaml. `parts`: the keys inside that are documented on their own."""

    path: str  # dotted
    meaning: str
    default: Any
    rules: dict[str, Any]  # what `@schema` says
    parts: tuple[Value, ...]


def generated(root: Path) -> dict[Path, str]:
    """Each generated file with its whole text."""
    values = read((root / VALUES).read_text())
    readme = CHART / "README.md"
    before, begin, rest = (root / readme).read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{readme} has lost its markers {BEGIN!r} and {END!r}; put them back")
    return {
        CHART / "values.schema.json": json.dumps(schema(values), indent=2) + "\n",
        readme: f"{before}{BEGIN}{table(values)}{END}{after}",
    }


def read(text: str) -> tuple[Value, ...]:
    """The keys of a values.yaml with their comments."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(node, yaml.MappingNode)
    return _values(node, yaml.safe_load(text), text.splitlines(), "")


def _values(
    node: yaml.MappingNode, defaults: dict[str, Any], lines: list[str], prefix: str
) -> tuple[Value, ...]:
    found = []
    for key, inner in node.value:
        path = prefix + key.value
        meaning, rules = _comment(lines, key.start_mark.line, path)
        default = defaults[key.value]
        parts: tuple[Value, ...] = ()
        if isinstance(inner, yaml.MappingNode) and inner.value and rules is None:
            parts = _values(inner, default, lines, path + ".")
        found.append(Value(path, meaning, default, rules or {}, parts))
    return tuple(found)


def _comment(lines: list[str], line: int, path: str) -> tuple[str, dict[str, Any] | None]:
    """What the comment that ends above `line` says, and its rules if there are any."""
    first = line
    while first > 0 and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    words = [text.lstrip().removeprefix("#").strip() for text in lines[first:line]]
    meaning = " ".join(text for text in words if not text.startswith(_TAG))
    if not meaning:
        raise ValueError(f"{VALUES}: {path} has no comment; say above it what it is")
    tags = [text.removeprefix(_TAG) for text in words if text.startswith(_TAG)]
    return meaning, json.loads(tags[0]) if tags else None


def schema(values: tuple[Value, ...]) -> dict[str, Any]:
    """The JSON schema that Helm checks values against (draft 7: every Helm 3 and 4 reads it)."""
    document = _object(values)
    # What a parent chart hands to all of its children.
    document["properties"]["global"] = {"type": "object"}
    return {"$schema": "http://json-schema.org/draft-07/schema#", **document}


def _object(values: tuple[Value, ...]) -> dict[str, Any]:
    properties = {value.path.rpartition(".")[2]: _schema(value) for value in values}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _schema(value: Value) -> dict[str, Any]:
    said = {"description": value.meaning}
    if value.parts:
        return said | _object(value.parts)
    if value.default in ([], {}) and not value.rules:
        raise ValueError(f"{VALUES}: {value.path} is empty; say in `@schema` what it may hold")
    rules = {"type": _TYPES[type(value.default)], **value.rules}
    return said | _closed(rules)


def _closed(rules: dict[str, Any]) -> dict[str, Any]:
    """The rules, with each object in them that names its properties closed."""
    inner = {
        name: _closed(part) if isinstance(part, dict) else part for name, part in rules.items()
    }
    return inner | ({"additionalProperties": False} if "properties" in rules else {})


def table(values: tuple[Value, ...]) -> str:
    """Markdown table of all values."""
    return (
        "\n".join(["| value | default | meaning |", "| --- | --- | --- |", *_rows(values)]) + "\n"
    )


def _rows(values: tuple[Value, ...]) -> list[str]:
    rows = []
    for value in values:
        default = "" if value.parts else f"`{json.dumps(value.default)}`"
        rows.append(f"| `{value.path}` | {default} | {value.meaning} |")
        rows += _rows(value.parts)
    return rows
