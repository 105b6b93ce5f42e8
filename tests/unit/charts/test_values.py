"""The operator chart's values: their schema and table are written from values.yaml."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml
from hack import chart

from servewright_api import __version__
from support.tree import ROOT

CHART = ROOT / chart.CHART
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())


def with_value(path: str, value: Any) -> dict[str, Any]:
    """The defaults with one value changed or added."""
    values: dict[str, Any] = json.loads(json.dumps(DEFAULTS))
    *groups, last = path.split(".")
    place = values
    for group in groups:
        place = place[group]
    place[last] = value
    return values


def objects(schema: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every object in a schema."""
    found = [(path, schema)] if schema.get("type") == "object" or "properties" in schema else []
    for name, inner in schema.get("properties", {}).items():
        found += objects(inner, f"{path}.{name}")
    return found + (objects(schema["items"], path + "[]") if "items" in schema else [])


def test_chart_and_operator_have_one_version() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (about["version"], about["appVersion"]) == (__version__, __version__)


def test_the_defaults_fit_their_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(DEFAULTS, SCHEMA)


def test_no_object_takes_a_key_that_it_does_not_know() -> None:
    # Maps of names that people choose have a type for the values; the rest is Kubernetes' own.
    ours = [(path, found) for path, found in objects(SCHEMA) if not path.startswith(".affinity.")]
    open_ones = [path for path, found in ours if found.get("additionalProperties", True) is True]
    assert open_ones == [".global"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("replica", 2),
        ("image.tags", "1"),
        ("registry", "https://registry.example"),
        ("registry", "registry.example/"),
        ("image.repository", "servewright-operator:1"),
        ("resources.limits.memroy", "1Gi"),
        ("tolerations", [{"keys": "a"}]),
        ("replicas", "2"),
        ("image.tag", "latest"),
        ("runtime.image.tag", "nightly"),
        ("image.digest", "sha256:abc"),
        ("image.pullPolicy", "Sometimes"),
        ("watchNamespaces", "default"),
        ("watchNamespaces", ["Default"]),
        ("podLabels", {"a": 1}),
        ("logLevel", "loud"),
    ],
)
def test_a_value_that_would_be_misunderstood_is_refused(path: str, value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(with_value(path, value), SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("image.digest", "sha256:" + "0" * 64),
        ("registry", "registry.example:5000/models"),
        ("resources.limits", {"cpu": 1, "memory": "1Gi"}),
        ("tolerations", [{"key": "a", "operator": "Exists", "effect": "NoSchedule"}]),
        ("affinity", {"nodeAffinity": {"whatever": "Kubernetes takes"}}),
        ("global", {"of": "a parent chart"}),
        ("podLabels", {"team": "models"}),
    ],
)
def test_a_value_that_people_need_is_taken(path: str, value: Any) -> None:
    jsonschema.validate(with_value(path, value), SCHEMA)


def test_a_comment_is_the_description_and_a_default_the_type() -> None:
    (value,) = chart.read('# How\n# many.\n# @schema {"minimum": 1}\nreplicas: 2\n')
    assert chart.schema((value,))["properties"]["replicas"] == {
        "description": "How many.",
        "type": "integer",
        "minimum": 1,
    }
    assert chart.table((value,)).endswith("| `replicas` | `2` | How many. |\n")


def test_a_value_that_nobody_described_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image\.tag has no comment"):
        chart.read("# The image.\nimage:\n  tag: x\n")


def test_an_empty_default_must_say_what_it_may_hold() -> None:
    with pytest.raises(ValueError, match=r"labels is empty; say in `@schema`"):
        chart.schema(chart.read("# Labels.\nlabels: {}\n"))
