"""What `servewright status` is to tell of, situation by situation."""

from __future__ import annotations

from datetime import datetime

from servewright_operator.showing import View
from support import pod_objects
from support.pretend import Pretend

LOG = "12:00:01 loading mine.gguf\n12:00:04 asking the probe\nTraceback: boom"


def view_of(world: Pretend, *, now: datetime | None = None) -> View:
    """Of a pretended cluster."""
    revisions = []
    for (kind, _), child in world.children.items():
        if kind == "ControllerRevision":
            stamp = pod_objects.stamp(pod_objects.BORN)
            metadata = {**child["metadata"], "creationTimestamp": stamp}
            revisions.append({**child, "metadata": metadata})
    return View(world.service, revisions, list(world.pods.values()))
