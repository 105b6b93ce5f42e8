"""Manifests for tests: a small valid one, and changes to it by field path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from servewright_api import ModelService


def make_manifest(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A valid document named "mine", with `changes` such as {"spec.engine.threads": 2}."""
    document: dict[str, Any] = {
        "apiVersion": "servewright.io/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": "mine"},
        "spec": {"model": {"source": "file:///models/mine.gguf"}},
    }
    for path, value in (changes or {}).items():
        *groups, last = path.split(".")
        place = document
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return document


def make_service(changes: Mapping[str, Any] | None = None) -> ModelService:
    """`make_manifest` as a ModelService."""
    return ModelService.model_validate(make_manifest(changes))
