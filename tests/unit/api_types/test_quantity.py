"""Kubernetes quantities."""

from __future__ import annotations

import contextlib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright_api import parse_quantity
from servewright_api.quantity import parse_bytes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("512", 512),
        ("512Mi", 512 * 2**20),
        ("1.5Gi", 3 * 2**29),
        ("2G", 2 * 10**9),
        ("100m", Fraction(1, 10)),
        ("1k", 1000),
        ("3Ki", 3072),
        ("1e3", 1000),
        ("1.5E2", 150),
        ("2Pi", 2 * 2**50),
        ("1Ti", 2**40),
        ("4P", 4 * 10**15),
    ],
)
def test_a_quantity_is_the_number_that_kubernetes_reads(text: str, value: Fraction) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize(
    "text", ["", "Mi", "-1", "+1", "1 Gi", "1gi", "1K", "1.", ".5", "1e", "1e999", "1Mi\n", "٣"]
)
def test_what_is_no_quantity_names_the_cure(text: str) -> None:
    with pytest.raises(ValueError, match="such as 512Mi"):
        parse_quantity(text)


def test_a_part_of_a_byte_is_rounded_up_as_kubernetes_does() -> None:
    assert parse_bytes("0.3Ki") == 308


def test_bytes_have_no_thousandths() -> None:
    with pytest.raises(ValueError, match="number of bytes; write one such as 512Mi"):
        parse_bytes("100m")


@given(st.text(max_size=20))
def test_any_text_is_a_quantity_or_an_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_quantity(text) >= 0


@given(st.integers(0, 10**12), st.sampled_from(["", "k", "M", "Ki", "Mi", "Gi"]))
def test_a_unit_multiplies(number: int, unit: str) -> None:
    assert parse_quantity(f"{number}{unit}") == number * parse_quantity(f"1{unit}")
