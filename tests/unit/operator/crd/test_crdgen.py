"""The generated CRD, without an API server: its size, its words, its file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from servewright_api import __version__
from servewright_api.rules import RULES
from servewright_operator import crdgen
from support.tree import ROOT

CHART = ROOT / "charts" / "servewright-crds"


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a schema."""
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from parts(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from parts(value)


def test_it_is_small() -> None:
    assert len(json.dumps(crdgen.crd())) < 60_000
    assert len(crdgen.text()) < 60_000


def test_the_committed_file_is_the_generated_one() -> None:
    assert (ROOT / crdgen.TEMPLATE).read_text() == crdgen.text()


def test_helm_keeps_it_and_reads_no_template_in_it() -> None:
    assert "{{" not in crdgen.text()
    written = yaml.safe_load(crdgen.text())
    assert written["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_nothing_is_left_that_structural_schemas_refuse() -> None:
    forbidden = {"$ref", "$defs", "const", "title", "examples", "patternProperties"}
    schema = crdgen.schema()
    assert [part for part in parts(schema) if forbidden & part.keys()] == []
    assert [
        part for part in parts(schema["properties"]["spec"]) if part.get("type") == "null"
    ] == []
    assert [part for part in parts(schema) if part.get("additionalProperties") is False] == []


def test_every_rule_in_cel_has_a_sentence() -> None:
    rules = [
        rule for part in parts(crdgen.schema()) for rule in part.get("x-kubernetes-validations", ())
    ]
    assert len(rules) > len(RULES)
    assert [rule for rule in rules if not rule.get("message")] == []


def test_every_field_is_described() -> None:
    named = [
        (name, field)
        for part in parts(crdgen.schema()["properties"]["spec"])
        if isinstance(part.get("properties"), dict)
        for name, field in part["properties"].items()
    ]
    assert len(named) > 50
    assert [name for name, field in named if not field.get("description")] == []


@pytest.mark.parametrize(("changed", "code"), [(False, 0), (True, 1)])
def test_check_tells_a_file_that_is_out_of_date(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changed: bool,
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    crdgen.TEMPLATE.parent.mkdir(parents=True)
    assert crdgen.main([]) == 0
    if changed:
        crdgen.TEMPLATE.write_text("other")
    assert crdgen.main(["--check"]) == code
    assert ("run make gen" in capsys.readouterr().err) == changed


def test_the_chart_is_of_this_version_and_takes_no_values() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["additionalProperties"] is False
    assert schema["properties"].keys() == {"global"}
