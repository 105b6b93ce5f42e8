"""The revision: a hash of what the user asked for."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given

from servewright_api import (
    RESTARTED_AT_ANNOTATION,
    ManifestError,
    ModelService,
    parse_manifest,
    revision,
)
from support.manifests import make_manifest, make_service
from support.specs import specs


def test_it_is_short_and_fit_for_a_name() -> None:
    assert re.fullmatch(r"[0-9a-f]{10}", revision(make_service()))


@pytest.mark.parametrize(
    "change",
    [
        {"spec.model.source": "file:///models/other.gguf"},
        {"spec.engine.threads": 2},
        {"spec.probe.expect": "Paris"},
        {"spec.limits.maxQueued": 3},
        {"spec.access.mode": "Open"},
        {"spec.accelerator": {"type": "nvidia"}},
        {"spec.resources.limits.memory": "4Gi"},
        {"spec.rollout.drainSeconds": 5},
        {"spec.pod.env": [{"name": "A", "value": "b"}]},
        {"metadata.annotations": {RESTARTED_AT_ANNOTATION: "2026-11-23T04:00:00Z"}},
    ],
)
def test_it_changes_with_what_a_pod_runs_or_serves(change: dict[str, Any]) -> None:
    assert revision(make_service(change)) != revision(make_service())


@pytest.mark.parametrize(
    "change",
    [
        {"metadata.labels": {"a": "b"}},
        {"metadata.annotations": {"a": "b"}},
        {"spec.replicas": 3},
        {"spec.suspend": True},
        {"spec.rollout.maxSurge": "25%"},
        {"spec.rollout.maxUnavailable": 1},
        {"spec.rollout.progressDeadlineSeconds": 60},
        {"spec.rollout.autoRollback": False},
        {"spec.probe.intervalSeconds": 5},
    ],
)
def test_it_does_not_change_with_what_is_applied_in_place(change: dict[str, Any]) -> None:
    assert revision(make_service(change)) == revision(make_service())


def test_another_restart_is_another_revision() -> None:
    times = ("2026-11-23T04:00:00Z", "2026-11-23T05:00:00Z")
    services = [
        make_service({"metadata.annotations": {RESTARTED_AT_ANNOTATION: time}}) for time in times
    ]
    assert len({revision(service) for service in services}) == 2


def test_defaults_written_out_do_not_change_it() -> None:
    service = make_service()
    written_out = make_manifest({"spec": service.spec.model_dump(mode="json", by_alias=True)})
    assert revision(ModelService.model_validate(written_out)) == revision(service)


@given(specs())
def test_defaults_written_into_any_spec_do_not_change_it(spec: dict[str, Any]) -> None:
    document = make_manifest({"spec": spec})
    try:
        service = parse_manifest(document)
    except ManifestError:
        return
    written_out = service.spec.model_dump(mode="json", by_alias=True)
    assert revision(parse_manifest(make_manifest({"spec": written_out}))) == revision(service)


def test_an_empty_group_does_not_change_it() -> None:
    assert revision(make_service({"spec.engine": {}})) == revision(make_service())


def test_it_is_the_same_in_every_version() -> None:
    # A new value here restarts every replica of every user at an upgrade.
    assert revision(make_service({"spec.engine.threads": 2})) == "6e52192a72"
