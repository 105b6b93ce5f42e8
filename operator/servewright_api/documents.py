"""YAML documents as plain data, read within bounds.

A manifest comes from a person, maybe from a stranger: size, depth and number of values are
bounded, a key that occurs twice is an error instead of a silent loss, and only what JSON can say
is read. Aliases are refused: they are of little use here and let a short text stand for a
huge one.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import yaml

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_VALUES = 20_000
MAX_DOCUMENTS = 64


class DocumentError(ValueError):
    """Text that is no YAML, or more than the bounds allow. The message is one sentence."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a file that holds `count` of them; `index` counts from 1."""

    index: int
    count: int
    value: Any


def read_documents(raw: bytes) -> list[Document]:
    """The non-empty documents of a file. Raises DocumentError."""
    if len(raw) > MAX_BYTES:
        raise DocumentError(
            f"holds more than {MAX_BYTES} bytes, the most that a manifest may hold; split it."
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(f"is not UTF-8 at byte {error.start}; save it as UTF-8.") from None
    values = []
    try:
        loader = _Loader(text)
        try:
            while loader.check_data():  # type: ignore[no-untyped-call]
                values.append(loader.get_data())
                if len(values) > MAX_DOCUMENTS:
                    raise DocumentError(f"holds more than {MAX_DOCUMENTS} documents; split it.")
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise DocumentError(f"{place}{error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise DocumentError(f"is no YAML: {' '.join(str(error).split())}.") from None
    return [
        Document(index, len(values), value)
        for index, value in enumerate(values, start=1)
        if value is not None
    ]


class _Loader(yaml.SafeLoader):
    """SafeLoader with bounds, string keys only, and no timestamps (Kubernetes has none either)."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own, minus one
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not read; write the value out", problem_mark=mark
            )
        self._values += 1
        if self._values > MAX_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"more than {MAX_VALUES} values; split the file", problem_mark=mark
            )
        if self._depth >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested more than {MAX_DEPTH} deep; no field is that deep",
                problem_mark=mark,
            )
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, OverflowError) as error:  # 5000 digits, 1__.0, ...
            if isinstance(error, yaml.YAMLError):
                raise
            raise yaml.MarkedYAMLError(
                problem="is not a number that can be read", problem_mark=node.start_mark
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(
                    problem="a key must be text; put it in quotes",
                    problem_mark=key_node.start_mark,
                )
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key[:60]!r} occurs twice; keep one",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _refuse_tag(loader: _Loader, node: yaml.Node) -> Any:
    raise yaml.MarkedYAMLError(
        problem=f"the tag {node.tag[:60]} is not read; write plain text, numbers, true or false",
        problem_mark=node.start_mark,
    )


_JSON_TAGS = ("null", "bool", "int", "float", "seq", "map", "str")
_Loader.yaml_constructors = {
    f"tag:yaml.org,2002:{tag}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{tag}"]
    for tag in _JSON_TAGS
}
_Loader.add_constructor(None, _refuse_tag)
