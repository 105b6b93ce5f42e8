"""PTX to Python: each straight stretch of a kernel becomes one function over all lanes.

A register is a numpy array with an element a lane, or a scalar while all lanes share its value.
Lanes outside the mask `M` (None: all lanes run) keep their values. Registers whose whole life is
one segment need no mask: nobody else reads them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from hack.ptx import arithmetic, floats, words
from hack.ptx.faults import Refused
from hack.ptx.operands import KINDS, literal, registers_of
from hack.ptx.program import SIZES, Instruction, Kernel
from hack.ptx.transfers import transfer

_ENDS = {"bra", "ret", "exit", "bar", "barrier", "nanosleep", "trap"}
_MEETINGS = {"shfl", "vote", "mma", "redux"}  # and bar.warp.sync


@dataclass
class Segment:
    """Instructions first to last (excluded). `end`: how control leaves; None: it falls through."""

    first: int
    last: int
    run: Callable[..., None]
    end: Instruction | None
    meets: Instruction | None  # begins with what all lanes of a warp do together
    issued: Counter[str] = field(default_factory=Counter)


class Translator:
    """Translates one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        if kernel.refusal:
            raise Refused(kernel.refusal)
        self.kernel = kernel
        self.constants: dict[str, Any] = {}
        self.defined: set[str] = set()
        self._where = self._lives()
        self._kinds: dict[str, str] = {}

    def segments(self) -> list[Segment]:
        """The whole kernel."""
        return [self._segment(first, last) for first, last in self._stretches()]

    def kind(self, register: str) -> str:
        """The numpy kind in which a register is held: that of where the text first names it."""
        return self._kinds.setdefault(register, KINDS[self.kernel.register_type(register)])

    def define(self, register: str, kind: str) -> str:
        """The kind in which to hold a register that is first defined as `kind`."""
        size = SIZES.get(self.kernel.register_type(register), 0)
        if register not in self._kinds:
            fits = kind == "b1" if not size else int(kind[1:]) == size
            self._kinds[register] = kind if fits else KINDS[self.kernel.register_type(register)]
        return self._kinds[register]

    def constant(self, value: Any) -> str:
        """The name of a constant in the generated code."""
        name = f"c_{value.dtype.name}_{value.tobytes().hex()}"
        self.constants[name] = value
        return name

    def is_local(self, register: str) -> bool:
        """Whether a register lives in one segment, defined before it is read."""
        return self._where[register]

    def _stretches(self) -> list[tuple[int, int]]:
        code = self.kernel.instructions
        starts = {0, len(code), *self.kernel.labels.values()}
        for at, instruction in enumerate(code):
            if meets(instruction):
                starts.add(at)
            if instruction.base in _ENDS:
                starts.add(at + 1)
        ordered = sorted(starts)
        return [(a, b) for a, b in pairwise(ordered) if a < b]

    def _lives(self) -> dict[str, bool]:
        seen: dict[str, set[int]] = {}
        local: dict[str, bool] = {}
        for number, (first, last) in enumerate(self._stretches()):
            for instruction in self.kernel.instructions[first:last]:
                written, read = registers_of(instruction)
                self.defined.update(written)
                for register in (*read, *written):
                    if register not in seen:
                        local[register] = register in written and register not in read
                        local[register] &= instruction.predicate is None
                        seen[register] = set()
                    seen[register].add(number)
                if instruction.base in _ENDS or meets(instruction):
                    local.update(dict.fromkeys(read, False))  # the launch looks at them
        return {r: local[r] and len(where) == 1 for r, where in seen.items()}

    def _segment(self, first: int, last: int) -> Segment:
        code = self.kernel.instructions[first:last]
        end = code[-1] if code[-1].base in _ENDS and not meets(code[-1]) else None
        issued: Counter[str] = Counter(i.opcode for i in code)
        writer = Writer(self)
        for at, instruction in enumerate(code[:-1] if end else code, first):
            try:
                writer.instruction(at, instruction)
            except (KeyError, ValueError, IndexError) as error:
                raise Refused(f"{self.kernel.name}, {instruction}") from error
        source = writer.source(f"segment_{first}")
        space = {**NAMES, **self.constants}
        exec(compile(source, f"<{self.kernel.name}>", "exec"), space)  # noqa: S102
        meeting = code[0] if meets(code[0]) else None
        return Segment(first, last, space[f"segment_{first}"], end, meeting, issued)


def meets(instruction: Instruction) -> bool:
    """Whether all lanes of a warp must come to it together."""
    return instruction.base in _MEETINGS or instruction.opcode.startswith("bar.warp")


class Writer:
    """Writes the Python of one segment."""

    def __init__(self, translator: Translator) -> None:
        self._translator = translator
        self._lines: list[str] = []
        self._held: set[str] = set()  # registers that are Python locals by now
        self._dirty: list[str] = []
        self.at = 0
        self.mask = "M"

    def instruction(self, at: int, instruction: Instruction) -> None:
        """Append one instruction."""
        self.at, self.mask = at, "M"
        if instruction.predicate:
            guard = self.read(instruction.predicate, "b1")
            self.mask = "m"
            self.line(f"m = join(M, {'~' * instruction.negated}{guard})")
        if transfer(self, instruction) or arithmetic.arithmetic(self, instruction):
            return
        raise Refused(f"{self._translator.kernel.name}, {instruction}")

    def line(self, text: str) -> None:
        """Append a line."""
        self._lines.append(text)

    @property
    def kernel(self) -> Kernel:
        """The kernel translated."""
        return self._translator.kernel

    def read(self, operand: str, kind: str) -> str:
        """An expression for an operand as numpy kind, e.g. "u4"."""
        if operand.startswith("%") and operand.partition(".")[0] not in SPECIAL:
            if operand not in self._translator.defined:
                # What no instruction writes is a half that nobody looks at.
                return self._translator.constant(np.dtype(kind).type(0))
            name, held = self._local(operand), self._translator.kind(operand)
            if operand not in self._held:
                self.line(f"{name} = R.get('{operand}')")
                self._held.add(operand)
            if held == kind:
                return name
            return f"{name}.view({kind})" if held[1:] == kind[1:] else f"{name}.astype({kind})"
        if operand.startswith("%"):
            return f"X.special('{operand}').astype({kind})"
        if operand in self.kernel.shared:
            return self._translator.constant(np.dtype(kind).type(self.kernel.shared[operand][0]))
        if operand in self.kernel.dynamic:
            return self._translator.constant(np.dtype(kind).type(self.kernel.shared_bytes))
        if operand in self.kernel.parameters:
            return self._translator.constant(
                np.dtype(kind).type(self.kernel.parameters[operand][0])
            )
        return self._translator.constant(literal(operand, kind))

    def write(self, register: str, kind: str, expression: str) -> None:
        """Assign an expression of a kind to a register, under the current mask."""
        if register == "_":
            return
        held = self._translator.define(register, kind)
        if held != kind:
            same = held[1:] == kind[1:]
            expression = (
                f"({expression}).view({held})" if same else f"({expression}).astype({held})"
            )
        name = self._local(register)
        if self._translator.is_local(register):
            guarded = self.mask == "m" and register in self._held
            self.line(
                f"{name} = keep(m, {expression}, {name})" if guarded else f"{name} = {expression}"
            )
            self._held.add(register)
            return
        if register not in self._held:
            self.line(f"{name} = R.get('{register}')")
            self._held.add(register)
        self.line(f"{name} = keep({self.mask}, {expression}, {name})")
        if register not in self._dirty:
            self._dirty.append(register)

    def source(self, name: str) -> str:
        """The function."""
        lines = [*self._lines, *(f"R['{r}'] = {self._local(r)}" for r in self._dirty), "return"]
        return f"def {name}(R, X, M):\n" + "".join(f" {line}\n" for line in lines)

    @staticmethod
    def _local(register: str) -> str:
        return register.replace("%", "r_").replace("$", "_")


SPECIAL = {
    *("%tid", "%ntid", "%ctaid", "%nctaid", "%laneid", "%warpid"),
    *("%lanemask_lt", "%lanemask_le", "%lanemask_gt", "%lanemask_ge", "%lanemask_eq"),
}


def join(mask: Any, guard: Any) -> Any:
    """The lanes of a mask for which a predicate holds: None for all lanes, False for none."""
    if np.ndim(guard) == 0:
        return mask if guard else False
    both = guard if mask is None else mask & guard
    return both if both.any() else False


def keep(mask: Any, new: Any, old: Any) -> Any:
    """new where the mask says so, else old; what was never written need not be kept."""
    if mask is None:
        return new
    if mask is False:
        return old
    return new if old is None else np.where(mask, new, old)


NAMES: dict[str, Any] = {
    **{kind: np.dtype(kind).type for kind in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")},
    **{"f2": np.float16, "f4": np.float32, "f8": np.float64, "b1": np.bool_},
    **{"np": np, "floats": floats, "words": words, "join": join, "keep": keep},
}
