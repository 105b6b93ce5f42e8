"""Fields of Kubernetes objects that may be missing, or not be what they should.

What comes from a cluster is read with these alone, so that an odd object is poorer in facts and
never a crash.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from servewright_operator.objects import Object

_LONGEST_S = 10.0**9  # also keeps out what is infinite or no number


def at(value: Any, *path: str) -> Any:
    """What stands at `path`; None where nothing does."""
    for part in path:
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def mapping(value: Any, *path: str) -> Object:
    """The mapping at `path`, else an empty one."""
    found = at(value, *path)
    return found if isinstance(found, dict) else {}


def text(value: Any, *path: str) -> str:
    """The text at `path`, else an empty one."""
    found = at(value, *path)
    return found if isinstance(found, str) else ""


def whole(value: Any, *path: str) -> int:
    """The whole number at `path`, else 0, which is what Kubernetes leaves out."""
    found = at(value, *path)
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def seconds(value: Any, *path: str) -> float:
    """The time at `path`, else 0.0."""
    found = at(value, *path)
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    return float(found) if is_number and 0 <= found < _LONGEST_S else 0.0


def objects(value: Any, *path: str) -> list[Object]:
    """The mappings of the list at `path`."""
    found = at(value, *path)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def moment(value: Any, *path: str) -> datetime | None:
    """The RFC 3339 time at `path`, if it is one that can be reckoned with."""
    try:
        found = datetime.fromisoformat(text(value, *path))
    except ValueError:
        return None
    return found if found.tzinfo is not None and 1970 < found.year < 3000 else None


def stamp(time: datetime) -> str:
    """RFC 3339 in whole seconds, as Kubernetes writes times."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(value: Object, kind: str) -> Object:
    """The condition of an object's status, else an empty mapping."""
    for found in objects(value, "status", "conditions"):
        if found.get("type") == kind:
            return found
    return {}
