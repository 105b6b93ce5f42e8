"""The Secrets that are made: the operator's own key, and users' first one where they name none.

A pod that was rendered with them needs them as long as its revision may run again, so the stored
templates tell which are wanted.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

from servewright_operator import kinds
from servewright_operator.desired.child import Owner, child
from servewright_operator.objects import Object
from servewright_operator.reading import objects, text

KEYS_VOLUME = "keys"


def mount(name: str, key: str) -> Object:
    """A made Secret as a source of the volume of keys. Only a made one names its item."""
    return {"secret": {"name": name, "items": [{"key": key, "path": key}]}}


def wanted(templates: Iterable[Object]) -> dict[str, str]:
    """The made Secrets that pods of these templates mount: key by name, in order of name."""
    found = {}
    for template in templates:
        for volume in objects(template, "spec", "volumes"):
            if volume.get("name") == KEYS_VOLUME:
                for source in objects(volume, "projected", "sources"):
                    name = text(source, "secret", "name")
                    for item in objects(source, "secret", "items"):
                        if name:
                            found[name] = text(item, "key")
    return dict(sorted(found.items()))


def build(owner: Owner, name: str, key: str, value: str) -> Object:
    """Secret `name` with one key."""
    return {
        **child(kinds.SECRET, owner, name),
        "type": "Opaque",
        "data": {key: base64.b64encode(value.encode()).decode()},
    }
