"""The revision: a hash of what the user asked for."""

from __future__ import annotations

import re
from typing import Any

import pytest

from servewright_api import ModelService, revision
from support.manifests import make_manifest, make_service


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
    ],
)
def test_it_changes_with_every_group_of_spec(change: dict[str, Any]) -> None:
    assert revision(make_service(change)) != revision(make_service())


def test_it_does_not_change_with_labels() -> None:
    assert revision(make_service({"metadata.labels": {"a": "b"}})) == revision(make_service())


def test_defaults_written_out_do_not_change_it() -> None:
    service = make_service()
    written_out = make_manifest({"spec": service.spec.model_dump(mode="json", by_alias=True)})
    assert revision(ModelService.model_validate(written_out)) == revision(service)


def test_an_empty_group_does_not_change_it() -> None:
    assert revision(make_service({"spec.engine": {}})) == revision(make_service())


def test_it_is_the_same_in_every_version() -> None:
    # A new value here restarts every replica of every user at an upgrade.
    assert revision(make_service({"spec.engine.threads": 2})) == "6e52192a72"
