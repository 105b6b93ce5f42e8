"""What the house asks of every field: described, bounded, explained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from servewright_api import (
    ManifestError,
    ModelService,
    Override,
    dump_manifest,
    parse_manifests,
    parse_override,
    revision,
)
from servewright_api.explain import PATTERN_WORDS
from servewright_api.fields import field_at, type_at, walk
from servewright_api.later import LATER_FIELDS
from support.manifests import make_manifest

SCHEMA = ModelService.model_json_schema(by_alias=True)


def leaves(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every part of a JSON schema that says `type`; one of two types is told as text."""
    if isinstance(schema, dict):
        if "x-kubernetes-int-or-string" in schema:
            yield path, {**schema, "type": "string"}
            return
        if isinstance(schema.get("type"), str):
            yield path, schema
        for key, value in schema.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from leaves(value, f"{path}/{index}")


def test_every_field_has_a_description() -> None:
    assert [path for path, field in walk() if not field.description] == []


def test_every_value_is_bounded() -> None:
    unbounded = []
    for path, part in leaves(SCHEMA):
        match part["type"]:
            case "string":
                bounds = part.keys() & {"maxLength", "enum", "const", "pattern"}
            case "integer" | "number":
                bounds = part.keys() & {"minimum"} if "maximum" in part else set()
            case "array":
                bounds = part.keys() & {"maxItems"}
            case "object":
                bounds = part.keys() & {"properties", "maxProperties"}
            case _:
                continue
        if not bounds:
            unbounded.append(path)
    assert unbounded == []


def test_every_pattern_has_words_for_its_error() -> None:
    patterns = {part["pattern"] for _, part in leaves(SCHEMA) if "pattern" in part}
    patterns |= {
        pattern for _, part in leaves(SCHEMA) for pattern in part.get("patternProperties", {})
    }
    assert patterns <= PATTERN_WORDS.keys()


def test_no_description_would_be_read_as_a_template() -> None:
    assert "{{" not in json.dumps(SCHEMA)


def test_what_is_planned_is_not_in_the_schema_and_has_a_home_in_it() -> None:
    for path in LATER_FIELDS:
        parts = path.split(".")
        assert field_at(parts) is None
        assert type_at(parts[:-1]) is not None


def test_types_are_frozen() -> None:
    service = ModelService.model_validate(make_manifest())
    with pytest.raises(ValueError, match="frozen"):
        service.spec = service.spec


# Property tests: whatever comes, an error or a ModelService, and nothing else.

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=30), st.just("Auto")
)
FIELDS = sorted({path.rpartition(".")[2].removesuffix("[]") for path, _ in walk()})
KEYS = st.one_of(st.sampled_from(FIELDS), st.text(max_size=10))
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=20,
)
PATHS = st.sampled_from([path for path, _ in walk() if "[]." not in path])


@given(st.dictionaries(PATHS, TREES, max_size=4))
def test_a_manifest_with_any_values_is_valid_or_an_error(changes: dict[str, Any]) -> None:
    document = make_manifest()
    for path, value in sorted(changes.items()):
        *groups, last = path.removesuffix("[]").split(".")
        place = document
        for group in groups:
            if not isinstance(place.get(group), dict):
                place[group] = {}
            place = place[group]
        place[last] = value
    check(yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "surrogatepass"))


@given(st.binary(max_size=300))
def test_any_bytes_are_an_error(raw: bytes) -> None:
    check(raw)


@given(st.text(alphabet="abk:-[]{},&*!|>'\"#%@`\n \t0.9e_~?<=", max_size=200))
def test_any_text_of_yaml_signs_is_an_error(text: str) -> None:
    check(text.encode())


@given(PATHS, st.text(max_size=30))
def test_any_set_is_valid_or_an_error(path: str, value: str) -> None:
    override = parse_override(f"{path}={value}")
    check(yaml.safe_dump(make_manifest()).encode(), override)


def check(raw: bytes, *overrides: Override) -> None:
    """It loads to what dumps and loads to the same, or every problem is one line."""
    services: list[ModelService] = []
    problems: tuple[str, ...] = ()
    try:
        services = parse_manifests(raw, origin="x", overrides=overrides)
    except ManifestError as error:
        problems = error.problems
    assert bool(services) != bool(problems)
    assert all(problem.startswith("x: ") and problem.isprintable() for problem in problems)
    for service in services:
        dumped = yaml.safe_dump(dump_manifest(service)).encode()
        (again,) = parse_manifests(dumped, origin="x")
        assert again == service
        assert revision(again) == revision(service)
