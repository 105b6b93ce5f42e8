"""Kubernetes quantities: "512Mi", "1.5Gi", "2G", "100m", "1e3"."""

from __future__ import annotations

import math
import re
from fractions import Fraction

# A sign is left out on purpose: no quantity of ours may be negative.
_NUMBER = r"[0-9]{1,15}(\.[0-9]{1,9})?"
_QUANTITY = re.compile(rf"{_NUMBER}(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi|[eE][0-9]{{1,2}})?")
# Memory has no thousandths of a byte.
MEMORY_PATTERN = rf"^{_NUMBER}([kMGTP]|[KMGTP]i|[eE][0-9]{{1,2}})?$"
_MEMORY = re.compile(MEMORY_PATTERN)
MAX_MEMORY = "1Pi"
# Finer than a thousandth of a CPU Kubernetes rounds.
CPU_PATTERN = r"^([0-9]{1,4}(\.[0-9]{1,3})?|[0-9]{1,7}m)$"
_FACTORS = {
    "": Fraction(1),
    "m": Fraction(1, 1000),
    **{unit: Fraction(1000) ** power for power, unit in enumerate("kMGTP", start=1)},
    **{unit + "i": Fraction(1024) ** power for power, unit in enumerate("KMGTP", start=1)},
}


def parse_quantity(text: str) -> Fraction:
    """The exact number that `text` stands for. Raises ValueError with the cure."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError("is not a quantity; write a number with a unit, such as 512Mi or 1.5Gi")
    suffix = match[2] or ""
    number = text[: len(text) - len(suffix)]
    if suffix[:1] in ("e", "E"):
        return Fraction(number) * Fraction(10) ** int(suffix[1:])
    return Fraction(number) * _FACTORS[suffix]


def parse_bytes(text: str) -> int:
    """Bytes that `text` stands for, rounded up as Kubernetes does. Raises ValueError."""
    if _MEMORY.fullmatch(text) is None:
        raise ValueError("is not a number of bytes; write one such as 512Mi or 1.5Gi")
    return math.ceil(parse_quantity(text))
