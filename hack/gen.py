"""Write the generated files, or with --check fail if one differs from what would be written.

Generated: the JSON schema of ModelService (for editors and other tools), the table of its fields
in docs/manifest.md and the CustomResourceDefinition, all from the pydantic types, the one source of
the schema; and the operator chart's values schema and table (`chart.py`). Run from the root:
`python -m hack.gen`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import BaseMetadata, Ge, Le, MaxLen
from hack import chart
from pydantic import BaseModel, StringConstraints, WithJsonSchema
from pydantic.fields import FieldInfo

from servewright_api import ModelService
from servewright_api.fields import is_list, nested_type, walk
from servewright_operator import crdgen

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = Path("docs/modelservice-v1alpha1.schema.json")
TABLE = Path("docs/manifest.md")
BEGIN = "<!-- fields: written by `make gen` from servewright_api, not by hand -->\n"
END = "<!-- end of fields -->\n"


def generated(root: Path) -> dict[Path, str]:
    """Each generated file with its whole text."""
    before, begin, rest = (root / TABLE).read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{TABLE} has lost its markers {BEGIN!r} and {END!r}; put them back")
    return {
        SCHEMA: schema(),
        TABLE: f"{before}{BEGIN}{table()}{END}{after}",
        crdgen.TEMPLATE: crdgen.text(),
        **chart.generated(root),
    }


def schema() -> str:
    """JSON schema of a manifest's document."""
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **ModelService.model_json_schema(by_alias=True),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def table() -> str:
    """Markdown table of all fields."""
    lines = ["| field | value | default | meaning |", "| --- | --- | --- | --- |"]
    for path, field in walk():
        if nested_type(field) is None or is_list(field):
            cells = (f"`{path}`", _value(field), _default(field), field.description or "")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _value(field: FieldInfo) -> str:
    kind, metadata = _kind(field)
    if words := _words(metadata):
        return words
    if get_origin(kind) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(kind))
    bounds = _bounds(metadata)
    if get_origin(kind) is list:
        return f"list, at most {bounds[MaxLen]:,}"
    if get_origin(kind) is dict:
        return f"names to values, at most {bounds[MaxLen]:,}"
    if kind is int:
        return f"{bounds[Ge]:,} to {bounds[Le]:,}"
    if kind is bool:
        return "`true`, `false`"
    longest = bounds.get(MaxLen)
    return f"text, at most {longest:,}" if longest else "text"


def _kind(field: FieldInfo) -> tuple[Any, list[Any]]:
    """The type of a field that may be absent, and what is said of it."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    if get_origin(field.annotation) not in (Union, UnionType) or len(kinds) > 1:
        return field.annotation, field.metadata
    if get_origin(kinds[0]) is not Annotated:
        return kinds[0], field.metadata
    kind, *metadata = get_args(kinds[0])
    return kind, field.metadata + metadata


def _words(metadata: list[Any]) -> str:
    """What a value of two types must be, in the words of its rule."""
    schemas = [item.json_schema for item in metadata if isinstance(item, WithJsonSchema)]
    rules = [rule for schema in schemas for rule in (schema or {})["x-kubernetes-validations"]]
    return " ".join(str(rule["message"]).removeprefix("must be ") for rule in rules)


def _bounds(metadata: list[Any]) -> dict[type[BaseMetadata], int]:
    found: dict[type[BaseMetadata], int] = {}
    for item in metadata:
        if isinstance(item, Ge):
            found[Ge] = int(str(item.ge))
        elif isinstance(item, Le):
            found[Le] = int(str(item.le))
        elif isinstance(item, MaxLen | StringConstraints) and item.max_length is not None:
            found[MaxLen] = item.max_length
    return found


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    if field.default in (None, {}, []) or isinstance(field.default, BaseModel):
        return ""
    return f"`{json.dumps(field.default)}`"


def main(arguments: list[str]) -> int:
    """Exit code: with --check 1 if a file is out of date."""
    stale = [
        path
        for path, text in generated(ROOT).items()
        if not (ROOT / path).exists() or (ROOT / path).read_text() != text
    ]
    if arguments == ["--check"]:
        for path in stale:
            print(f"error: {path} is out of date; run make gen", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        (ROOT / path).write_text(generated(ROOT)[path])
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
