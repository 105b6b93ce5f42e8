"""Objects in a real API server, status included, written as their controllers would."""

from __future__ import annotations

import json

from servewright_operator.objects import Object
from support.apiserver import ApiServer


def put(server: ApiServer, namespace: str, thing: Object) -> Object:
    """Create it and write its status; the object as it is then."""
    thing["metadata"]["namespace"] = namespace
    for given in ("uid", "generation", "creationTimestamp", "ownerReferences"):
        thing["metadata"].pop(given, None)
    text = json.dumps(thing)
    made = json.loads(server.kubectl("create", "--filename=-", "--output=json", stdin=text))
    if "status" in thing:
        made["status"] = thing["status"]
        words = ("replace", "--subresource=status", "--filename=-", "--output=json")
        made = json.loads(server.kubectl(*words, stdin=json.dumps(made)))
    return dict(made)
