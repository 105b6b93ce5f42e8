"""Kernels as nvcc's PTX states them: parameters, shared memory, instructions, labels.

Reads what `nvcc -ptx -lineinfo` writes, not PTX at large: anything else is refused with its line.
Source: PTX ISA 9.0, chapters 4 to 6.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from hack.ptx.faults import Refused

# Bytes of each fundamental type; a predicate has none.
SIZES = {
    **{"b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2},
    **{"b32": 4, "u32": 4, "s32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4},
    **{"b64": 8, "u64": 8, "s64": 8, "f64": 8},
}
# Shared variables lie apart, so that an overflow meets a gap. A multiple of 128 bytes keeps banks.
SHARED_GAP = 128


@dataclass(frozen=True)
class Instruction:
    """One instruction: `@!%p1 add.s32 %r1, %r2, 3;` has predicate %p1 (negated) and 3 operands."""

    line: int  # in the PTX
    source: str  # file:line of the CUDA source, or ""
    predicate: str | None
    negated: bool
    opcode: str
    operands: tuple[str, ...]

    @property
    def base(self) -> str:
        """`ld` of `ld.global.v4.u32`."""
        return self.opcode.partition(".")[0]

    @property
    def modifiers(self) -> tuple[str, ...]:
        """`global`, `v4`, `u32` of `ld.global.v4.u32`."""
        return tuple(self.opcode.split(".")[1:])

    def __str__(self) -> str:
        guard = f"@{'!' * self.negated}{self.predicate} " if self.predicate else ""
        where = f" ({self.source})" if self.source else ""
        return f"line {self.line}{where}: {guard}{self.opcode} {', '.join(self.operands)}"


@dataclass(eq=False)
class Kernel:
    """One `.entry`. Offsets of parameters and shared variables are in bytes."""

    name: str
    parameters: dict[str, tuple[int, int]] = field(default_factory=dict)  # offset, size
    parameter_bytes: int = 0
    # "%r" or a whole name -> "b32"
    registers: dict[str, str] = field(default_factory=lambda: {"%carry": "pred"})
    shared: dict[str, tuple[int, int]] = field(default_factory=dict)  # offset, size
    shared_bytes: int = 0  # of static variables, with their gaps
    dynamic: tuple[str, ...] = ()  # names of `.extern .shared` arrays: all the same place
    threads: int = 0  # .maxntid
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # index of an instruction
    refusal: str = ""  # why it cannot run

    def register_type(self, name: str) -> str:
        """`b32` for `%r17`."""
        found = self.registers.get(name) or self.registers.get(name.rstrip("0123456789"))
        if found is None:
            raise Refused(f"{self.name}: {name} is no declared register")
        return found


class Program:
    """The kernels of one PTX file."""

    def __init__(self, text: str) -> None:
        files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.MULTILINE))
        externs = re.findall(r"\.extern \.shared (?:\.align \d+ )?\.b8 ([\w$]+)\[\];", text)
        self.kernels: dict[str, Kernel] = {}
        for found in re.finditer(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{", text):
            kernel = Kernel(found[1], dynamic=tuple(externs))
            if threads := re.search(r"\.maxntid\s+(\d+)", found[3]):
                kernel.threads = int(threads[1])
            _read_parameters(kernel, found[2])
            first = text.count("\n", 0, found.end()) + 1
            body, code = _Body(kernel, files), text[found.end() : _end(text, found.end())]
            # Variables of a function that several kernels call stand before them all.
            for statement, name in re.findall(
                r"^(\.shared .*?([\w$]+)\[\d+\]);", text, re.MULTILINE
            ):
                if re.search(rf"{re.escape(name)}(?![\w$])", code):
                    body.declare(0, statement)
            body.read(code, first)
            self.kernels[kernel.name] = kernel

    def kernel(self, *parts: str) -> Kernel:
        """The only kernel whose (mangled) name contains all the parts."""
        fitting = [k for n, k in self.kernels.items() if all(part in n for part in parts)]
        if len(fitting) != 1:
            names = ", ".join(k.name for k in fitting) or f"none of {', '.join(self.kernels)}"
            raise Refused(f"{' '.join(parts)} should name one kernel, names {names}")
        return fitting[0]


def _end(text: str, start: int) -> int:
    depth = 1
    for found in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if found[0] == "{" else -1
        if not depth:
            return found.start()
    raise Refused("a kernel without an end")


def _read_parameters(kernel: Kernel, text: str) -> None:
    offset = 0
    for part in filter(None, map(str.strip, text.split(","))):
        found = re.fullmatch(
            r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+.*?)?([\w$]+)(?:\[(\d+)\])?",
            part,
        )
        if not found:
            raise Refused(f"{kernel.name}: parameter {part}")
        size = SIZES[found[2]] * int(found[4] or 1)
        align = int(found[1] or SIZES[found[2]])
        offset = -(-offset // align) * align
        kernel.parameters[found[3]] = (offset, size)
        offset += size
    kernel.parameter_bytes = offset


class _Body:
    """Reads the statements of one kernel; braces of inline assembly open a scope of names."""

    def __init__(self, kernel: Kernel, files: dict[str, str]) -> None:
        self._kernel = kernel
        self._files = files
        self._scopes: list[dict[str, str]] = []
        self._opened = 0

    def read(self, text: str, first_line: int) -> None:
        source = ""
        for line, statement in _statements(text, first_line):
            if statement == "{":
                self._opened += 1
                self._scopes.append({})
            elif statement == "}":
                self._scopes.pop()
            elif statement.endswith(":"):
                self._kernel.labels[statement[:-1]] = len(self._kernel.instructions)
            elif found := re.match(r"\.loc\s+(\d+)\s+(\d+)", statement):
                source = f"{self._files.get(found[1], '?').rpartition('/')[2]}:{found[2]}"
            elif statement.startswith("."):
                self.declare(line, statement)
            else:
                self._kernel.instructions.append(self._instruction(line, source, statement))

    def declare(self, line: int, statement: str) -> None:
        kernel = self._kernel
        if found := re.fullmatch(r"\.reg\s+\.(\w+)\s+(.+)", statement):
            for name in map(str.strip, found[2].split(",")):
                if ranged := re.fullmatch(r"(%\w+?)<\d+>", name):
                    kernel.registers[ranged[1]] = found[1]
                else:
                    full = f"%scope{self._opened}_{name.lstrip(chr(37))}" if self._scopes else name
                    kernel.registers[full] = found[1]
                    if self._scopes:
                        self._scopes[-1][name] = full
        elif found := re.fullmatch(
            r"\.shared\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?", statement
        ):
            kernel.shared[found[2]] = (kernel.shared_bytes, SIZES[found[1]] * int(found[3] or 1))
            size = SIZES[found[1]] * int(found[3] or 1)
            kernel.shared_bytes += -(-size // 128) * 128 + SHARED_GAP
        elif statement.startswith(".local"):
            kernel.refusal = f"{kernel.name}, line {line}: local memory (spilled): {statement}"
        elif not statement.startswith((".pragma", ".file", ".section", ".branchtargets")):
            raise Refused(f"{kernel.name}, line {line}: {statement}")

    def _instruction(self, line: int, source: str, statement: str) -> Instruction:
        found = re.fullmatch(r"(?:@(!?)([%\w]+)\s+)?([a-z][\w.:]*)\s*(.*)", statement, re.DOTALL)
        if not found:
            raise Refused(f"{self._kernel.name}, line {line}: {statement}")
        operands = tuple(self._named(operand) for operand in _operands(found[4]))
        predicate = self._named(found[2]) if found[2] else None
        return Instruction(line, source, predicate, found[1] == "!", found[3], operands)

    def _named(self, operand: str) -> str:
        for scope in reversed(self._scopes):
            for name, full in scope.items():
                operand = re.sub(rf"(?<![%\w$]){re.escape(name)}(?![\w$])", full, operand)
        return operand


def _statements(text: str, line: int) -> Iterator[tuple[int, str]]:
    """Statements without their `;`, labels with their `:`, and single braces that open a scope."""
    text = re.sub(r"//[^\n]*", "", text)
    token = re.compile(r"\s*(?:([{}])|(\.(?:loc|file)\b[^\n]*)|([\w$]+):(?!:)|([^;]+);)", re.DOTALL)
    at = 0
    while text[at:].strip():
        found = token.match(text, at)
        if not found:
            raise Refused(f"line {line}: {text[at : at + 80].strip()}")
        skipped = text[at : found.end()]
        start = line + len(skipped[: len(skipped) - len(skipped.lstrip())].split("\n")) - 1
        line += skipped.count("\n")
        at = found.end()
        if found[3]:
            yield start, f"{found[3]}:"
        else:
            yield start, (found[1] or found[2] or found[4]).strip()


def _operands(text: str) -> Iterator[str]:
    """Splits at commas outside brackets."""
    depth, start = 0, 0
    for at, character in enumerate(text):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and not depth:
            yield text[start:at].strip()
            start = at + 1
    if text[start:].strip():
        yield text[start:].strip()
