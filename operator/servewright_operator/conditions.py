"""metav1.Conditions: what is said today, merged with what was said before.

Clients wait on `lastTransitionTime`: it changes with the condition's status and with nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Literal, NamedTuple

from servewright_operator.objects import Object
from servewright_operator.reading import condition, moment, stamp
from servewright_operator.reasons import Condition

MAX_MESSAGE = 2048

Truth = Literal["True", "False", "Unknown"]
_REASON = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]{0,254}[A-Za-z0-9_])?")


class Said(NamedTuple):
    """What a condition says."""

    type: Condition
    status: Truth
    reason: str
    message: str


def merged(service: Object, said: Iterable[Said], generation: int, now: datetime) -> list[Object]:
    """The conditions of a status, in the order of `said`."""
    conditions = []
    for one in said:
        assert _REASON.fullmatch(one.reason), one.reason
        before = condition(service, one.type)
        since = moment(before, "lastTransitionTime") if before.get("status") == one.status else None
        message = one.message
        conditions.append(
            {
                "type": str(one.type),
                "status": one.status,
                "observedGeneration": generation,
                "lastTransitionTime": stamp(since or now),
                "reason": str(one.reason),
                "message": message
                if len(message) <= MAX_MESSAGE
                else f"{message[: MAX_MESSAGE - 4]} ...",
            }
        )
    return conditions
