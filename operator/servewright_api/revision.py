"""The name of a revision: a hash of what the user asked for."""

from __future__ import annotations

import hashlib
import json

from servewright_api.modelservice import ModelService


def revision(service: ModelService) -> str:
    """Ten hex digits that change when a field changes what a pod runs or serves.

    Today every field of spec does. Values equal to their defaults are left out, so that a
    manifest keeps its revision when the API server writes the defaults into it, or when a later
    version adds a field.
    """
    spec = service.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]
