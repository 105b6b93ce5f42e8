"""What nvdisasm prints of a kernel, counted: loads by width, copies, barriers, tensor operations.

Bytes in flight are read off the code: a load is in flight until an instruction names its register;
of asynchronous copies, the groups that a wait leaves open are, and those started behind it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
_SECTION = re.compile(r"^\.text\.(\S+):$", re.MULTILINE)
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


@dataclass
class Code:
    """Counts of instructions of one kernel. Loads and stores are those of global memory."""

    wide_loads: int = 0  # LDG.128
    other_loads: int = 0
    wide_copies: int = 0  # LDGSTS.128
    other_copies: int = 0
    wide_stores: int = 0
    other_stores: int = 0
    local: int = 0  # LDL, STL
    barriers: int = 0
    tensor: int = 0  # HMMA
    instructions: int = 0
    loop: int = 0  # instructions of the smallest loop that has tensor operations
    flying: int = 0  # bytes that a thread has in flight
    waits: int = 0  # ACQBULK: for the launch before it
    early_copies: int = 0  # wide copies and loads that stand before the first wait
    early_loads: int = 0


def kernels(text: str) -> dict[str, Code]:
    """By mangled name."""
    parts = _SECTION.split(text)
    return {name: _count(body) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def _count(body: str) -> Code:
    code = Code()
    flight = _Flight()
    for found in _LINE.finditer(body):
        opcode, operands = found[1], found[2]
        if opcode == "NOP":
            continue
        code.instructions += 1
        base, *parts = opcode.split(".")
        wide = "128" in parts
        code.waits += base == "ACQBULK"
        if not code.waits:
            code.early_copies += base == "LDGSTS"
            code.early_loads += base == "LDG"
        if base == "LDG":
            code.wide_loads += wide
            code.other_loads += not wide
        elif base == "LDGSTS":
            code.wide_copies += wide
            code.other_copies += not wide
        elif base == "STG":
            code.wide_stores += wide
            code.other_stores += not wide
        elif base in ("LDL", "STL"):
            code.local += 1
        elif base == "BAR":
            code.barriers += 1
        elif base == "HMMA":
            code.tensor += 1
        flight.see(base, parts, operands)
    if not code.waits:
        code.early_copies = code.early_loads = 0
    code.flying = flight.most
    code.loop = _loop(body)
    return code


def _loop(body: str) -> int:
    """A loop lies between a label and a later branch back to it."""
    starts: dict[str, int] = {}
    bases: list[str] = []
    sizes = []
    for line in body.splitlines():
        if label := re.match(r"(\.L_\w+):", line):
            starts[label[1]] = len(bases)
        elif found := _LINE.search(line):
            bases.append(found[1].partition(".")[0])
            back = re.search(r"`\((\.L_\w+)\)", found[2]) if bases[-1] == "BRA" else None
            if back and "HMMA" in bases[starts.get(back[1], len(bases)) :]:
                inside = bases[starts[back[1]] :]
                sizes.append(len(inside) - inside.count("NOP"))
    return min(sizes, default=0)


class _Flight:
    """Bytes that a thread waits for, along the code as it lies."""

    def __init__(self) -> None:
        self._loads: dict[int, int] = {}  # first register -> bytes that will arrive
        self._registers: dict[int, int] = {}  # each register of a load -> its first one
        self._most_loads = 0
        self._group = 0
        self._largest_group = 0
        self._open_groups = 0
        self._most_open = 0
        self._waited = False

    @property
    def most(self) -> int:
        """Loads and copies together."""
        return self._most_loads + self._largest_group * self._most_open

    def see(self, base: str, parts: list[str], operands: str) -> None:
        """One instruction."""
        for name in re.findall(r"\bR(\d+)\b", operands):
            self._loads.pop(self._registers.pop(int(name), -1), None)
        size = next((_WIDTHS[part] for part in parts if part in _WIDTHS), 4)
        if base == "LDG":
            if target := re.match(r"\s*R(\d+)", operands):
                first = int(target[1])
                self._loads[first] = size
                for register in range(first, first + max(1, size // 4)):
                    self._registers[register] = first
                self._most_loads = max(self._most_loads, sum(self._loads.values()))
        elif base == "LDGSTS":
            self._group += size
        elif base == "LDGDEPBAR":
            self._largest_group = max(self._largest_group, self._group)
            self._group = 0
            if self._waited:  # groups of the prologue, before any wait, do not last
                self._open_groups += 1
                self._most_open = max(self._most_open, self._open_groups)
        elif base == "DEPBAR":
            if left := re.search(r"SB0, (0x[0-9a-f]+)", operands):
                self._waited = True
                self._open_groups = int(left[1], 16)
                self._most_open = max(self._most_open, self._open_groups)
        elif base in ("EXIT", "RET"):
            self._loads.clear()
            self._registers.clear()
