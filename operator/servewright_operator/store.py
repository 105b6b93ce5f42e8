"""What is known of the cluster: the newest form of each object, by uid.

Fed by watch events, by whole LISTs and by the API server's answers to our own writes, so that a
pass sees what the one before it wrote, whatever the watch still has to tell. Objects are kept
smaller than they come: a thousand ModelServices are seven thousand objects.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from servewright_operator import foreign, kinds, names
from servewright_operator.kinds import Kind
from servewright_operator.names import Key
from servewright_operator.objects import Object

# Removed objects that a late event or LIST must not bring back; what is later by more is rare.
_TOMBSTONES = 10_000
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
# Of a pod's spec, which the Deployment's template holds already.
_OF_POD = ("nodeName", "readinessGates")
_SERVICE = kinds.MODEL_SERVICE.name
_NOT_CHILDREN = (_SERVICE, kinds.POD.name)


class Store:
    """The newest known objects, and which ModelService each belongs to."""

    def __init__(self) -> None:
        self._objects: dict[str, Object] = {}
        self._keys: dict[str, Key] = {}  # by uid
        self._uids: dict[Key, dict[str, None]] = {}  # in the order in which they were first seen
        self._tombstones: dict[str, int] = {}  # resourceVersion by uid
        self._lost: dict[Key, set[tuple[str, str]]] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, uid: str) -> Object | None:
        """An object."""
        return self._objects.get(uid)

    def service_keys(self) -> list[Key]:
        """Every ModelService there is."""
        return [
            self._keys[uid] for uid, known in self._objects.items() if known["kind"] == _SERVICE
        ]

    def service(self, key: Key) -> Object | None:
        """The ModelService."""
        return next(iter(self._of(key, {_SERVICE})), None)

    def children(self, owner: Object) -> list[Object]:
        """Objects that this very ModelService controls."""
        key = owner_key(owner)
        assert key is not None
        return [known for known in self._of(key) if is_owned(known, owner)]

    def pods(self, key: Key) -> list[Object]:
        """Pods with the labels of a ModelService, made by a controller."""
        return [pod for pod in self._of(key, {kinds.POD.name}) if _controller(pod)]

    def is_news(self, new: Mapping[str, Any]) -> bool:
        """Whether this form of an object is newer than what is known of it."""
        uid, version = new["metadata"]["uid"], int(new["metadata"]["resourceVersion"])
        known = self._objects.get(uid)
        if known is not None and _version(known) >= version:
            return False
        return self._tombstones.get(uid, -1) < version

    def put(self, new: Object) -> Key | None:
        """Learn of an object. Whose it is, if that says anything new; the store then owns `new`."""
        key = owner_key(new)
        if key is None or not self.is_news(new):
            return None
        metadata = new["metadata"]
        uid = metadata["uid"]
        self._forget(uid)  # its key may be another one: labels can be edited
        self._objects[uid] = _pruned(new)
        self._keys[uid] = key
        self._uids.setdefault(key, {})[uid] = None
        self._lost.get(key, set()).discard((new["kind"], metadata["name"]))
        return key

    def remove(self, gone: Object) -> Key | None:
        """Learn that an object is gone, or no longer selected. Whose it was, if it was known and
        did not come back since.

        A child that goes while its owner stays is remembered as lost, unless `forget` told of
        it before: then it was our own doing.
        """
        known = self._objects.get(gone["metadata"]["uid"])
        if known is not None and _version(known) > _version(gone):
            return None
        key = self.forget(gone)
        if key is not None and known is not None:
            owner = self.service(key)
            if owner is not None and is_owned(known, owner):
                self._lost.setdefault(key, set()).add((known["kind"], known["metadata"]["name"]))
        return key

    def forget(self, gone: Object) -> Key | None:
        """Learn that an object is gone by our own doing. Whose it was, if it was known."""
        metadata = gone["metadata"]
        self._tombstones[metadata["uid"]] = _version(gone)
        while len(self._tombstones) > _TOMBSTONES:
            del self._tombstones[next(iter(self._tombstones))]
        # A watch may tell of our own doing before the API server's answer does.
        owner = owner_key(gone)
        if owner is not None:
            self._lost.get(owner, set()).discard((gone["kind"], metadata["name"]))
        return self._forget(metadata["uid"])

    def lost(self, key: Key) -> frozenset[tuple[str, str]]:
        """Kind and name of the children that somebody deleted and that are not back yet."""
        return frozenset(self._lost.get(key, ()))

    def replace(
        self, kind: Kind, namespace: str | None, listed: Iterable[Object], version: int
    ) -> tuple[set[Key], int]:
        """Learn a whole LIST of a kind, taken at `version`: whose objects changed, and how many
        were known that are no longer there."""
        present = set()
        changed: set[Key | None] = set()
        for new in listed:
            present.add(new["metadata"]["uid"])
            changed.add(self.put(new))
        ghosts = [
            known
            for uid, known in self._objects.items()
            if known["kind"] == kind.name
            and uid not in present
            and namespace in (None, known["metadata"]["namespace"])
            and _version(known) <= version
        ]
        changed.update(self.remove(ghost) for ghost in ghosts)
        return {key for key in changed if key is not None}, len(ghosts)

    def _of(self, key: Key, only: set[str] | None = None) -> list[Object]:
        known = [self._objects[uid] for uid in self._uids.get(key, ())]
        return known if only is None else [each for each in known if each["kind"] in only]

    def _forget(self, uid: str) -> Key | None:
        if self._objects.pop(uid, None) is None:
            return None
        key = self._keys.pop(uid)
        uids = self._uids[key]
        del uids[uid]
        if not uids:
            del self._uids[key]
            self._lost.pop(key, None)
        return key


def is_wish(before: Object | None, now: Object) -> bool:
    """Whether somebody wants something else of a ModelService; else only its status is new."""
    if before is None:
        return True
    old, new = before["metadata"], now.get("metadata", {})
    parts = ("generation", "annotations", "deletionTimestamp")
    return any(old.get(part) != new.get(part) for part in parts)


def owner_key(of: Object) -> Key | None:
    """Which ModelService an object belongs to: the one that controls it, else by its label."""
    metadata = of["metadata"]
    if of["kind"] == _SERVICE:
        return Key(metadata["namespace"], metadata["name"])
    controller = _controller(of)
    if controller.get("kind") == _SERVICE:
        name = controller["name"]
    else:
        name = metadata.get("labels", {}).get(names.SERVICE_LABEL)
    return None if name is None else Key(metadata["namespace"], name)


def is_owned(child: Object, owner: Object) -> bool:
    """Whether `owner` itself, not a namesake before it, controls `child`."""
    return bool(_controller(child).get("uid") == owner["metadata"]["uid"])


def _version(of: Object) -> int:
    return int(of["metadata"]["resourceVersion"])


def _controller(of: Object) -> Object:
    owners = of["metadata"].get("ownerReferences", ())
    return next((owner for owner in owners if owner.get("controller")), {})


def _pruned(new: Object) -> Object:
    """Without what no decision reads. Who manages which field is of use only where it is amiss."""
    metadata = dict(new["metadata"])
    if new["kind"] in _NOT_CHILDREN or not foreign.fields(new):
        metadata.pop("managedFields", None)
    pruned = {**new, "metadata": metadata}
    if new["kind"] == kinds.POD.name:
        metadata.pop("annotations", None)
        pruned["spec"] = {key: new["spec"][key] for key in _OF_POD if key in new["spec"]}
    elif _LAST_APPLIED in metadata.get("annotations", {}):
        annotations = dict(metadata["annotations"])
        del annotations[_LAST_APPLIED]
        metadata["annotations"] = annotations
    kept: Object = _interned(pruned)
    return kept


def _interned(value: Any) -> Any:
    """The same with one copy of each string in this process: objects of a kind consist of the same
    ones, and half of their memory goes."""
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        return {sys.intern(key): _interned(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_interned(one) for one in value]
    return value
