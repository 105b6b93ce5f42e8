"""The name of a revision: a hash of what the user asked for."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from servewright_api.modelservice import GROUP, ModelService

# A new value asks for a new revision of the same spec, with today's pod template and image.
RESTARTED_AT_ANNOTATION = f"{GROUP}/restartedAt"

# What a running pod need not be replaced for. Of rollout a pod obeys drainSeconds.
_APPLIED_IN_PLACE: dict[str, Any] = {
    "replicas": True,
    "suspend": True,
    "rollout": {"max_surge", "max_unavailable", "progress_deadline_seconds", "auto_rollback"},
    "probe": {"interval_seconds"},
}


def revision(service: ModelService) -> str:
    """Ten hex digits that change when a field changes what a pod runs or serves."""
    wanted = revision_fields(service)
    if restarted_at := service.metadata.annotations.get(RESTARTED_AT_ANNOTATION):
        wanted["restartedAt"] = restarted_at
    canonical = json.dumps(wanted, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def revision_fields(service: ModelService) -> dict[str, Any]:
    """The fields of spec that make the revision, those equal to their defaults left out.

    So a manifest keeps its revision when the API server writes the defaults into it, or when a
    later version adds a field.
    """
    spec = service.spec.model_dump(
        mode="json", by_alias=True, exclude_defaults=True, exclude=_APPLIED_IN_PLACE
    )
    return {group: value for group, value in spec.items() if value != {}}
