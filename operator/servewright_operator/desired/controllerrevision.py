"""The memory of a revision: its pod template as it was rendered once.

The API server lets nobody change `data`, so a rollback runs what ran before, to the byte.
"""

from __future__ import annotations

import copy

from servewright_operator import kinds, names
from servewright_operator.desired.child import Owner, child
from servewright_operator.objects import Object, StoredRevision


def build(owner: Owner, revision: StoredRevision) -> Object:
    """ControllerRevision NAME-REVISION."""
    return {
        **child(
            kinds.CONTROLLER_REVISION,
            owner,
            names.revision_object(owner.key.name, revision.name),
            {names.REVISION_LABEL: revision.name},
        ),
        "revision": revision.number,
        "data": {"template": copy.deepcopy(revision.template)},
    }
