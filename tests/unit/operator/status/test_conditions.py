"""metav1.Conditions as clients wait on them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from servewright_operator.conditions import MAX_MESSAGE, Said, Truth, merged
from servewright_operator.objects import Object
from servewright_operator.reasons import Condition

NOW = datetime(2026, 11, 23, 5, 0, 0, 250_000, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


def said(status: Truth = "True", reason: str = "Fine", message: str = "All is well.") -> Said:
    return Said(Condition.READY, status, reason, message)


def stored(one: Said, generation: int = 1) -> Object:
    return {"status": {"conditions": merged({}, [one], generation, NOW)}}


def test_a_condition_has_all_that_the_convention_asks_for() -> None:
    assert merged({}, [said()], 7, NOW) == [
        {
            "type": "Ready",
            "status": "True",
            "observedGeneration": 7,
            "lastTransitionTime": "2026-11-23T05:00:00Z",
            "reason": "Fine",
            "message": "All is well.",
        }
    ]


@pytest.mark.parametrize(
    ("new", "is_transition"),
    [
        pytest.param(said(), False, id="stays with the same words"),
        pytest.param(said(reason="Better"), False, id="stays with another reason"),
        pytest.param(said(message="Still."), False, id="stays with another message"),
        pytest.param(said("False"), True, id="changes with the status"),
        pytest.param(said("Unknown"), True, id="changes to Unknown"),
    ],
)
def test_the_transition_time(new: Said, is_transition: bool) -> None:
    (one,) = merged(stored(said()), [new], 2, LATER)
    assert one["lastTransitionTime"] == (
        "2026-11-23T06:00:00Z" if is_transition else "2026-11-23T05:00:00Z"
    )
    assert one["observedGeneration"] == 2


def test_a_stored_time_of_nonsense_is_replaced() -> None:
    before = stored(said())
    before["status"]["conditions"][0]["lastTransitionTime"] = "yesterday"
    (one,) = merged(before, [said()], 1, LATER)
    assert one["lastTransitionTime"] == "2026-11-23T06:00:00Z"


def test_a_message_is_cut() -> None:
    (one,) = merged({}, [said(message="x" * 100_000)], 1, NOW)
    assert len(one["message"]) == MAX_MESSAGE
    assert one["message"].endswith(" ...")


def test_a_reason_that_the_api_server_would_refuse_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        merged({}, [said(reason="not a word")], 1, NOW)
