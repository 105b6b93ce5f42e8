"""The operator chart's templates stay plain: they install the operator, which does the rest."""

from __future__ import annotations

import re

import pytest

from servewright_operator.settings import Settings
from support.tree import ROOT

TEMPLATES = ROOT / "charts/servewright/templates"
OPTIONAL = {
    "serviceaccount.yaml": "serviceAccount.create",
    "rbac-users.yaml": "aggregateRoles",
    "poddisruptionbudget.yaml": "podDisruptionBudget.enabled",
    "networkpolicy.yaml": "networkPolicy.enabled",
    "podmonitor.yaml": "podMonitor.enabled",
    "grafana-dashboard.yaml": "grafanaDashboard.enabled",
}


def test_helpers_are_few_and_short() -> None:
    text = (TEMPLATES / "_helpers.tpl").read_text()
    bodies = re.findall(
        r'{{- define "servewright\.(\w+)" -}}\n(.*?)\n{{- end }}$', text, re.M | re.S
    )
    assert [name for name, _ in bodies] == [
        "name",
        "selectorLabels",
        "labels",
        "serviceAccount",
        "image",
    ]
    assert max(body.count("\n") for _, body in bodies) < 15


@pytest.mark.parametrize(("name", "value"), OPTIONAL.items(), ids=OPTIONAL)
def test_an_optional_part_is_one_file_in_one_if(name: str, value: str) -> None:
    text = (TEMPLATES / name).read_text()
    assert text.startswith(f"{{{{- if .Values.{value} }}}}\n")
    assert text.endswith("{{- end }}\n")
    assert len(re.findall(r"{{-? if ", text)) == 1


def test_nothing_names_a_moving_tag() -> None:
    for path in TEMPLATES.iterdir():
        assert not re.search(r":(latest|main|master|nightly)\b", path.read_text()), path


def test_the_lease_that_may_be_written_is_the_operators() -> None:
    named = re.findall(r"resourceNames: \[(.*)\]", (TEMPLATES / "rbac-lease.yaml").read_text())
    assert named == [Settings.__dataclass_fields__["lease_name"].default]
