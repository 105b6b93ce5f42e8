from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright_runtime.fetch.retry import HttpPolicy


@given(st.integers(1, 100), st.floats(0, 1, exclude_max=True), st.floats(0, 1000))
def test_wait_grows_to_its_bound_and_is_never_less_than_asked(
    failures: int, dice: float, asked: float
) -> None:
    policy = HttpPolicy(dice=lambda: dice)
    wait = policy.wait_s(failures, None)
    assert 0.25 <= wait <= policy.max_wait_s
    assert wait <= policy.wait_s(failures + 1, None)
    assert policy.wait_s(failures, asked) >= asked


@given(st.text(max_size=40))
def test_any_header_is_seconds_or_nothing(text: str) -> None:
    seconds = HttpPolicy().parse_retry_after(text)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("120", 120.0),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("Sun, 06 Nov 1994 08:50:37 GMT", 60.0),
        ("Sun, 06 Nov 1994 08:49:00 GMT", 0.0),
        ("Sun, 06 Nov 1994 09:50:37 +0100", 60.0),
        ("Sun, 06 Nov 1994 08:50:37", 60.0),
        ("Sun, 99 Nov 1994 08:50:37 GMT", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(text: str | None, seconds: float | None) -> None:
    assert HttpPolicy(now=lambda: 784111777.0).parse_retry_after(text) == seconds
