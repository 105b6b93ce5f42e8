"""The fields of the schema by their path, as messages, `--set` and the documentation need them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from servewright_api.modelservice import ModelService


def field_at(path: Sequence[int | str]) -> FieldInfo | None:
    """The field at ("spec", "engine", "threads"), None where the schema has none."""
    owner = type_at(path[:-1])
    if owner is None or not path:
        return None
    return _field_of(owner, path[-1])


def type_at(path: Sequence[int | str]) -> type[BaseModel] | None:
    """The type whose fields stand below `path`; ModelService for an empty one.

    Numbers, as in ("spec", "pod", "env", 0), are entries of a list.
    """
    found: type[BaseModel] = ModelService
    for part in path:
        if isinstance(part, int):
            continue
        field = _field_of(found, part)
        inner = nested_type(field) if field is not None else None
        if inner is None:
            return None
        found = inner
    return found


def _field_of(owner: type[BaseModel], name: int | str) -> FieldInfo | None:
    return next((f for f in owner.model_fields.values() if f.alias == name), None)


def nested_type(field: FieldInfo) -> type[BaseModel] | None:
    """The type of ours that a field or each entry of its list holds, None for text and the like."""
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def is_list(field: FieldInfo) -> bool:
    """Whether a field holds a list."""
    return get_origin(field.annotation) is list


def walk(type_: type[BaseModel] = ModelService, path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field with its dotted path, groups before what is in them; lists end in []."""
    for name, field in type_.model_fields.items():
        here = f"{path}.{field.alias or name}".lstrip(".") + ("[]" if is_list(field) else "")
        yield here, field
        inner = nested_type(field)
        if inner is not None:
            yield from walk(inner, here)
