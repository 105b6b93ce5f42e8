"""Operands: which registers they name, what number a literal is, what an address is made of."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from hack.ptx.faults import Refused
from hack.ptx.program import Instruction

# PTX types as numpy kinds. bf16 has none of its own: its bits are held.
KINDS = {
    **{"b8": "u1", "u8": "u1", "s8": "i1", "b16": "u2", "u16": "u2", "s16": "i2"},
    **{"b32": "u4", "u32": "u4", "s32": "i4", "b64": "u8", "u64": "u8", "s64": "i8"},
    **{"f16": "f2", "f32": "f4", "f64": "f8", "bf16": "u2", "bf16x2": "u4", "f16x2": "u4"},
    "pred": "b1",
}
CARRY = "%carry"  # the flag of add.cc and sub.cc
_REGISTER = re.compile(r"%[\w$]+(?:\.[xyz])?")
_NO_RESULT = {"st", "red", "cp", "bar", "barrier", "bra", "ret", "exit", "membar", "fence"}


def vector(operand: str) -> list[str]:
    """The members of `{%r1, %r2}`, or the operand alone."""
    if operand.startswith("{"):
        return [part.strip() for part in operand[1:-1].split(",")]
    return [operand]


def address(operand: str) -> tuple[str, int]:
    """Base and offset in bytes of `[%rd1+16]`."""
    found = re.fullmatch(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand)
    if not found:
        raise Refused(f"the address {operand}")
    return found[1], int(found[2] or "0", 0)


def registers_of(instruction: Instruction) -> tuple[list[str], list[str]]:
    """Registers written, registers read; special ones among the latter do no harm."""
    written = [CARRY] if "cc" in instruction.modifiers else []
    read = [instruction.predicate] if instruction.predicate else []
    if instruction.base in ("addc", "subc"):
        read.append(CARRY)
    for at, operand in enumerate(instruction.operands):
        names = _REGISTER.findall(operand)
        if at == 0 and instruction.base not in _NO_RESULT:
            written += names
        else:
            read += names
    return written, read


def literal(operand: str, kind: str) -> Any:
    """A number as a numpy scalar: `7`, `-1`, `0x1F`, `0f3F800000`, `0d3FF0000000000000`."""
    dtype = np.dtype(kind)
    if operand[:2] in ("0f", "0F"):
        value: Any = np.uint32(int(operand[2:], 16)).view(np.float32)
        return value.view(kind) if dtype.itemsize == 4 else dtype.type(value)
    if operand[:2] in ("0d", "0D"):
        return np.uint64(int(operand[2:], 16)).view(np.float64).view(kind)
    try:
        number = int(operand.rstrip("U"), 0)
    except ValueError:
        raise Refused(f"the operand {operand}") from None
    if dtype.kind == "b":
        return np.bool_(number)
    if dtype.kind == "f":
        return np.dtype(f"u{dtype.itemsize}").type(number).view(kind)
    bits = 8 * dtype.itemsize
    return np.dtype(f"u{dtype.itemsize}").type(number % (1 << bits)).view(kind)
