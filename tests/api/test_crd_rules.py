"""What the API server refuses of a ModelService, and in which words. One manifest per rule."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from kubernetes import client, config

from servewright_api import ManifestError, parse_manifest
from servewright_api.explain import PATTERN_WORDS
from servewright_operator import crdgen
from support.apiserver import ApiServer
from support.broken import BROKEN, Broken
from support.manifests import make_manifest
from support.specs import SPEC, specs

GROUP, VERSION = "servewright.io", "v1alpha1"
DIGEST = "sha256:" + "0a" * 32
# Each is one small request of 7 ms.
EXAMPLES = 200

Ask = Callable[[dict[str, Any]], str]


@pytest.fixture(scope="session")
def ask(api_server: ApiServer) -> Iterator[Ask]:
    """What the API server says against a document, "" if it takes it. Nothing is stored."""
    loaded = config.new_client_from_config(str(api_server.kubeconfig))  # type: ignore[no-untyped-call]
    with loaded as connection:
        custom = client.CustomObjectsApi(connection)

        def ask(document: dict[str, Any]) -> str:
            place = (GROUP, VERSION, "default", crdgen.PLURAL)
            try:
                custom.create_namespaced_custom_object(
                    *place, document, dry_run="All", field_validation="Strict"
                )
            except client.ApiException as refused:
                if refused.status not in (400, 422):
                    raise
                return str(refused.body)
            return ""

        yield ask


def document(changes: Mapping[str, Any]) -> dict[str, Any]:
    return make_manifest({"spec.model.source": "https://host/x", **changes})


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.why)
def test_a_broken_rule_is_told_with_its_field_and_cure(ask: Ask, case: Broken) -> None:
    said = ask(make_manifest(case.change))
    # What the list's type forbids is told in the API server's own words.
    assert (case.rule.message if case.rule.cel else "Duplicate value") in said
    assert case.path in said


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.why)
def test_the_cure_cures(ask: Ask, case: Broken) -> None:
    assert ask(make_manifest({**case.change, **case.cure})) == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param("x" * 53, "must hold at most 52 characters", id="a name too long for pods"),
        pytest.param("7b", "a letter first, such as smollm2", id="a name that begins with a digit"),
        pytest.param("a.b", "the name must be lower-case letters", id="a name with a dot"),
    ],
)
def test_a_name_unfit_for_its_children_is_refused(ask: Ask, name: str, words: str) -> None:
    assert words in ask(document({"metadata.name": name}))


def test_a_name_as_long_as_may_be_is_taken(ask: Ask) -> None:
    assert ask(document({"metadata.name": "x" * 52})) == ""


# Every bound of every field, read from the schema.

# Of what a field's neighbours must not go without.
SAMPLES: dict[str, Any] = {
    "name": "A",
    "key": "a",
    "topologyKey": "zone",
    "type": "nvidia",
    "source": "https://host/x",
    "model": {"source": "https://host/x"},
}


def bounds(schema: dict[str, Any], path: str) -> Iterator[tuple[str, str, Any, str]]:
    """(what is wrong, path, value, words of the refusal) for each bound of each field."""
    if "properties" in schema:
        for name in schema.get("required", ()):
            where = f"{path}.{name}".replace("[]", "[0]")
            yield f"{path} without {name}", path, {}, f"{where}: Required value"
        for name, field in schema["properties"].items():
            yield from bounds(field, f"{path}.{name}")
        yield f"{path} with an unknown field", path, {"zebra": 1}, 'unknown field \\"'
        return
    if "x-kubernetes-int-or-string" in schema:
        (rule,) = schema["x-kubernetes-validations"]
        yield f"{path} of nonsense", path, "x", rule["message"]
        yield f"{path} of a fraction", path, 1.5, "Invalid value"
        return
    wrong = {"integer": "1", "boolean": "true"}.get(schema["type"], 1)
    yield f"{path} of another type", path, wrong, f"must be of type {schema['type']}"
    if "minimum" in schema:
        low, high = schema["minimum"], schema["maximum"]
        yield f"{path} below its bound", path, low - 1, "should be greater than or equal to"
        yield f"{path} above its bound", path, high + 1, "should be less than or equal to"
    if "enum" in schema:
        yield f"{path} of another word", path, "Nonsense", "supported values: "
    if "minLength" in schema:
        yield f"{path} of no text", path, "", "should be at least 1 chars long"
    if "maxLength" in schema:
        longest = schema["maxLength"]
        yield f"{path} too long", path, "x" * (longest + 1), "Too long: may not be more than"
    for rule in schema.get("x-kubernetes-validations", ()):
        if rule["message"].removeprefix("must be ") in PATTERN_WORDS.values():
            yield f"{path} out of its pattern", path, " ", rule["message"]
    if schema["type"] == "array":
        longest = schema["maxItems"]
        yield f"{path} with too many entries", path, [{}] * (longest + 1), "Too many"
        yield from bounds(schema["items"], f"{path}[]")
    if schema["type"] == "object":
        most, values = schema["maxProperties"], schema["additionalProperties"]
        yield f"{path} with too much", path, {f"k{i}": "" for i in range(most + 1)}, "Too many"
        yield f"{path} with a wrong key", path, {"-a": ""}, "each key must be a label key"
        long = {"a": "x" * (values["maxLength"] + 1)}
        yield f"{path} with a long value", path, long, "Too long: may not be more than"
        for rule in values.get("x-kubernetes-validations", ()):
            yield f"{path} with a wrong value", path, {"a": "-"}, rule["message"]


def with_value(path: str, value: Any) -> dict[str, Any]:
    """A document with `value` at a path; [] stands for the one entry of a list.

    Besides it there is what its neighbours must not go without.
    """
    return make_manifest({"spec": _holding(SPEC, path.split(".")[1:], value)})


def _holding(schema: dict[str, Any], path: Sequence[str], value: Any) -> Any:
    if not path:
        return value
    name, inner = path[0].removesuffix("[]"), schema["properties"][path[0].removesuffix("[]")]
    if name != path[0]:
        held: Any = [_holding(inner["items"], path[1:], value)]
    else:
        held = _holding(inner, path[1:], value)
    needed = {other: SAMPLES[other] for other in schema.get("required", ())}
    return {**needed, name: held}


BOUNDS = list(bounds(SPEC, "spec"))


@pytest.mark.parametrize(
    ("path", "value", "words"), [case[1:] for case in BOUNDS], ids=[case[0] for case in BOUNDS]
)
def test_a_value_out_of_its_bound_is_refused(ask: Ask, path: str, value: Any, words: str) -> None:
    said = ask(with_value(path, value))
    assert words in said
    assert path.replace("[]", "[0]") in said


# Local validation and the API server are of one mind.


@settings(max_examples=EXAMPLES)
@given(spec=specs())
def test_what_is_valid_here_is_valid_there(ask: Ask, spec: dict[str, Any]) -> None:
    here = ""
    try:
        parse_manifest(copy.deepcopy(make_manifest({"spec": spec})), in_cluster=True)
    except ManifestError as refused:
        here = str(refused)
    there = ask(make_manifest({"spec": spec}))
    assert bool(here) == bool(there), here or there
