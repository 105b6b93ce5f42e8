"""The fields of the schema by their path, as messages, `--set` and the documentation need them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from servewright_api.modelservice import ModelService


def field_at(path: Sequence[int | str]) -> FieldInfo | None:
    """The field at ("spec", "engine", "threads"), None where the schema has none."""
    owner = type_at(path[:-1])
    if owner is None or not path:
        return None
    return next((f for f in owner.model_fields.values() if f.alias == path[-1]), None)


def type_at(path: Sequence[int | str]) -> type[BaseModel] | None:
    """The type whose fields stand below `path`; ModelService for an empty one."""
    found: type[BaseModel] = ModelService
    for depth in range(len(path)):
        field = next((f for f in found.model_fields.values() if f.alias == path[depth]), None)
        inner = nested_type(field) if field is not None else None
        if inner is None:
            return None
        found = inner
    return found


def nested_type(field: FieldInfo) -> type[BaseModel] | None:
    """The type of ours that a field holds, None for text, numbers and the like."""
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def walk(type_: type[BaseModel] = ModelService, path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field with its dotted path, groups before what is in them."""
    for name, field in type_.model_fields.items():
        here = f"{path}.{field.alias or name}".lstrip(".")
        yield here, field
        inner = nested_type(field)
        if inner is not None:
            yield from walk(inner, here)
