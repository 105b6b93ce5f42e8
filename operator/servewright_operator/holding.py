"""Whether a live object is still what was applied: then there is nothing to write.

An apply that changes nothing still costs the API server a third of one that does. So it is skipped
when the live object was made from the very manifest that is desired (a hash in an annotation says
so) and nobody has changed since what that manifest says. The API server adds defaults, writes
quantities its own way and leaves out what is empty: none of that is a change. What others add
beside our fields is seen by who owns it, see foreign.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from servewright_operator import names
from servewright_operator.objects import Object

# Lists whose items the API server merges by these fields. Any other list is owned as a whole.
_MERGE_KEYS: Mapping[str, tuple[str, ...]] = {
    "containers": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "initContainers": ("name",),
    "ownerReferences": ("uid",),
    "ports": ("containerPort", "port", "protocol"),  # of containers and Services
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
# Structures that are owned as a whole: a field that someone else adds changes what they mean.
_WHOLE = {"labelSelector", "matchLabels", "nodeSelector", "podSelector", "selector"}
# Where an empty text is not the same as none.
_TEXTS = {"annotations", "data", "labels", "matchLabels", "nodeSelector", "selector"}

_QUANTITY = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]*)?(?:[eE][0-9]+)?)(?P<unit>[numkKMGTPE]?i?)")
_FACTORS = {
    "": Fraction(1),
    **{unit: Fraction(1, 1000) ** power for power, unit in enumerate("mun", start=1)},
    **{unit: Fraction(1000) ** power for power, unit in enumerate("kMGTPE", start=1)},
    **{unit + "i": Fraction(1024) ** power for power, unit in enumerate("KMGTPE", start=1)},
}

_Path = tuple[str, ...]


def with_hash(manifest: Object) -> Object:
    """What to apply: `manifest` and, in an annotation, its hash.

    A manifest that carries one already gets an equal one.
    """
    metadata = manifest["metadata"]
    annotations = dict(metadata.get("annotations", {}))
    annotations.pop(names.APPLIED_ANNOTATION, None)
    hashed = {**manifest, "metadata": {**metadata, "annotations": annotations}}
    canonical = json.dumps(hashed, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    annotations[names.APPLIED_ANNOTATION] = hashlib.sha256(canonical.encode()).hexdigest()[:16]
    return hashed


def holds(live: Object, desired: Object) -> bool:
    """Whether `live` was made from `desired` and still says all of it."""
    return _lost(live, with_hash(desired), ()) is None


def difference(live: Object, desired: Object) -> str | None:
    """The first desired field that someone else changed or removed, such as
    "spec.template.spec.containers[replica].image".

    None where nobody did, and where `live` was made from another manifest: what differs then is
    a change of our own.
    """
    hashed = with_hash(desired)
    mark = hashed["metadata"]["annotations"][names.APPLIED_ANNOTATION]
    if live["metadata"].get("annotations", {}).get(names.APPLIED_ANNOTATION, mark) != mark:
        return None
    path = _lost(live, hashed, ())
    return None if path is None else ".".join(path).replace(".[", "[")


def _lost(live: Any, desired: Any, path: _Path, *, whole: bool = False) -> _Path | None:
    """Where `live` first lacks what `desired` says or, if it is owned whole, says more."""
    if live == desired:  # most of it is: no need to look closer
        return None
    whole = whole or ("", *path)[-1] in _WHOLE
    is_moved = False
    if isinstance(desired, Mapping) and isinstance(live, Mapping):
        keys = [*desired, *(key for key in live if whole and key not in desired)]
        pairs = [((*path, key), live.get(key), desired.get(key)) for key in keys]
    elif isinstance(desired, list) and isinstance(live, list):
        merge_keys = None if whole else _MERGE_KEYS.get(path[-1])
        if merge_keys is None:
            if len(live) != len(desired):
                return path
            whole = True
            pairs = [
                ((*path, f"[{index}]"), *items)
                for index, items in enumerate(zip(live, desired, strict=True))
            ]
        else:
            by_key = {_key(item, merge_keys): item for item in live}
            wanted = {_key(item, merge_keys): item for item in desired}
            pairs = [((*path, f"[{key}]"), by_key.get(key), item) for key, item in wanted.items()]
            # An apply restores the order too, which in a pod template is a change of its own.
            is_moved = [key for key in by_key if key in wanted] != list(wanted)
    else:
        return None if _is_same(live, desired, path) else path
    for here, live_value, value in pairs:
        lost = _lost(live_value, value, here, whole=whole)
        if lost is not None:
            return lost
    return path if is_moved else None


def _key(item: Mapping[str, Any], merge_keys: tuple[str, ...]) -> str:
    return "/".join(str(item[key]) for key in merge_keys if key in item)


def _is_same(live: Any, desired: Any, path: _Path) -> bool:
    parent, field = ("", *path)[-2:]
    if parent in _TEXTS:
        return bool(live == desired)
    if _is_empty(live) and _is_empty(desired):
        return True
    if field == "sizeLimit" or parent in ("requests", "limits"):
        return bool(_number(live) == _number(desired))
    return type(live) is type(desired) and bool(live == desired)


def _is_empty(value: Any) -> bool:
    """Whether the API server leaves it out. It keeps an empty mapping, such as `emptyDir: {}`."""
    return value is None or value in ("", 0, False) or value == []


def _number(quantity: Any) -> Any:
    """The value of "1500m"; anything that is no quantity as it is."""
    match = _QUANTITY.fullmatch(str(quantity))
    if match is None or match["unit"] not in _FACTORS:
        return quantity
    return Fraction(match["number"]) * _FACTORS[match["unit"]]
