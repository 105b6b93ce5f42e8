"""What the compiled kernels cost, held against csrc/cuda/budgets.toml.

    python -m hack.budgets           compares
    python -m hack.budgets --write   writes the file anew; its diff is reviewed

Per kernel and architecture: registers, instructions that load and store by width, barriers, tensor
operations, shared bytes, the blocks that fit a multiprocessor, and the bytes that these keep in
flight. No kernel may spill or use local memory, and each must keep FLIGHT bytes in flight: by
Little's law an H100 needs 3.35 TB/s * 0.65 us / 132 = 16.5 KB a multiprocessor.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from hack import nvcc, sass

FILE = nvcc.KERNELS / "budgets.toml"
ARCHITECTURES = ("sm_80", "sm_90")
FLIGHT = 32 << 10
# Registers may be this many below the budget: less is a gain that should be kept.
SLACK = 4
# Instructions, in percent, either way: what unrolling and scheduling move.
DRIFT = 5
# Shared memory a multiprocessor, KB; the driver takes 1 KB of each block (CUDA C++ guide, 5.1).
_SHARED = {"sm_80": 164 << 10, "sm_90": 228 << 10}
_RESERVED = 1 << 10
_REGISTERS, _PARTITIONS, _WARPS, _BLOCKS = 64 << 10, 4, 64, 32

HEADER = """\
# What each kernel costs, by architecture. `python -m hack.budgets --write` writes this file;
# tests/unit/cuda/test_budgets.py compares. Columns: see Budget in hack/budgets.py.
"""


@dataclass(frozen=True)
class Budget:
    """One kernel on one architecture. Loads and stores are instructions on global memory."""

    registers: int
    instructions: int
    loop: int  # of them, in the smallest loop with tensor operations
    wide_loads: int  # of 16 bytes a lane
    other_loads: int
    wide_copies: int  # asynchronous, of 16 bytes
    wide_stores: int
    other_stores: int
    barriers: int
    tensor: int
    shared: int  # bytes a block, static and dynamic
    blocks: int  # that a multiprocessor holds
    in_flight: int  # bytes a multiprocessor
    waits: int  # for the launch before it (sm_90)
    early_copies: int  # of 16 bytes that stand before the first of these waits
    early_loads: int


@dataclass(frozen=True)
class Measured:
    """A budget, and what no kernel may have."""

    budget: Budget
    spills: int  # bytes
    local: int  # instructions, bytes of stack


def measure(architecture: str) -> dict[str, Measured]:
    """Every kernel of csrc/cuda, by a short name such as `project<Q4_0, NORMED, 1, 1>`."""
    found: dict[str, Measured] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sources = sorted(nvcc.KERNELS.glob("*.cu"))
        results = list(pool.map(partial(nvcc.compile_kernels, architecture=architecture), sources))
    for compiled in results:
        code = sass.kernels(nvcc.disassemble(compiled))
        reports = _reports(compiled.report)
        names = short_names(list(code))
        shared = dynamic_shared(list(names.values()))
        for mangled, counts in code.items():
            threads = _threads(compiled.ptx, mangled)
            name = names[mangled]
            found[name] = _measured(
                architecture, counts, reports[mangled], shared.get(name, 0), threads
            )
    return dict(sorted(found.items()))


def _measured(
    architecture: str, code: sass.Code, report: dict[str, int], dynamic: int, threads: int
) -> Measured:
    shared = report["smem"] + dynamic
    blocks = resident_blocks(architecture, report["registers"], shared, threads)
    budget = Budget(
        registers=report["registers"],
        instructions=code.instructions,
        loop=code.loop,
        wide_loads=code.wide_loads,
        other_loads=code.other_loads,
        wide_copies=code.wide_copies,
        wide_stores=code.wide_stores,
        other_stores=code.other_stores,
        barriers=code.barriers,
        tensor=code.tensor,
        shared=shared,
        blocks=blocks,
        in_flight=blocks * threads * code.flying,
        waits=code.waits,
        early_copies=code.early_copies,
        early_loads=code.early_loads,
    )
    return Measured(budget, report["spilled"], code.local + report["stack"])


def resident_blocks(architecture: str, registers: int, shared: int, threads: int) -> int:
    """How many blocks a multiprocessor holds: registers go by 8 to a lane, by quarter."""
    warps = -(-threads // 32)
    a_warp = -(-registers // 8) * 8 * 32
    by_registers = _REGISTERS // _PARTITIONS // a_warp * _PARTITIONS // warps
    by_shared = _SHARED[architecture] // (-(-shared // 128) * 128 + _RESERVED)
    return min(by_registers, by_shared, _WARPS // warps, _BLOCKS)


def compare(wanted: dict[str, Budget], found: dict[str, Measured]) -> list[str]:
    """What is wrong, one line each."""
    wrong = [f"{name}: no budget" for name in found.keys() - wanted.keys()]
    wrong += [f"{name}: a budget, but no kernel" for name in wanted.keys() - found.keys()]
    for name in sorted(found.keys() & wanted.keys()):
        wrong += [f"{name}: {problem}" for problem in _problems(wanted[name], found[name].budget)]
    for name, measured in found.items():
        if measured.spills or measured.local:
            wrong.append(f"{name}: spills {measured.spills} bytes, local {measured.local}")
        if measured.budget.in_flight < FLIGHT:
            wrong.append(f"{name}: {measured.budget.in_flight} bytes in flight, wants {FLIGHT}")
    return sorted(wrong)


def _problems(wanted: Budget, found: Budget) -> list[str]:
    wrong = []
    for field, now in asdict(found).items():
        budget = getattr(wanted, field)
        if field == "registers":
            fits = budget - SLACK <= now <= budget
        elif field in ("instructions", "loop"):
            fits = abs(now - budget) * 100 <= DRIFT * budget
        else:
            fits = now == budget
        if not fits:
            wrong.append(f"{field} {now}, the budget is {budget}")
    return wrong


def read(architecture: str) -> dict[str, Budget]:
    """The budgets of an architecture."""
    table = tomllib.loads(FILE.read_text())[architecture]
    return {name: Budget(**values) for name, values in table.items()}


def written(measured: dict[str, dict[str, Measured]]) -> str:
    """The budget file."""
    lines = [HEADER]
    for architecture, kernels in measured.items():
        lines.append(f"[{architecture}]")
        for name, found in kernels.items():
            values = ", ".join(f"{key} = {value}" for key, value in asdict(found.budget).items())
            lines.append(f'"{name}" = {{ {values} }}')
        lines.append("")
    return "\n".join(lines)


def short_names(mangled: list[str]) -> dict[str, str]:
    """Demangled, without namespaces and arguments, enumerators by their names."""
    told = subprocess.run(
        ["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    enumerations = _enumerations()
    names = {}
    for symbol, full in zip(mangled, told, strict=True):
        name = re.sub(r"^void |\(anonymous namespace\)::|_GLOBAL__N__\w+::", "", full)
        name = re.sub(
            r"\(([\w:]+)\)(\d+)",
            lambda m: enumerations[m[1].rpartition("::")[2]][int(m[2])],
            name,
        )
        name = re.sub(r"\b(?:\w+::)+", "", name)
        names[symbol] = re.sub(r"\(.*\)$", "", name)
    return names


def _enumerations() -> dict[str, list[str]]:
    text = "\n".join(
        path.read_text()
        for folder in (nvcc.KERNELS, nvcc.ROOT / "csrc" / "common")
        for path in sorted(folder.glob("*.*h"))
    )
    found = re.findall(r"enum class (\w+)[^{;]*\{([^}]*)\}", text)
    return {name: [part.strip() for part in body.split(",")] for name, body in found}


# Dynamic shared memory is the launcher's to choose: kernel -> header, expression of its bytes.
_DYNAMIC = {
    "project": ("gemm.cuh", "Plan<Weight::{0}, {2}, {3}>::SHARED_BYTES"),
    "paged_attention": ("attention.cuh", "AttentionLayout<{0}>::BYTES"),
    "attend_chunk": ("prefill_attention.cuh", "prefill::AttentionPlan<{0}, {1}>::BYTES"),
}


def dynamic_shared(names: list[str]) -> dict[str, int]:
    """Bytes of each kernel that has any, computed by the compiler from the kernels' headers."""
    wanted: dict[str, str] = {}
    headers: set[str] = set()
    for name in names:
        base, _, parameters = name.rstrip(">").partition("<")
        if base in _DYNAMIC:
            header, expression = _DYNAMIC[base]
            headers.add(header)
            wanted[name] = expression.format(*parameters.split(", "))
    if not wanted:
        return {}
    text = "".join(f'#include "cuda/{header}"\n' for header in sorted(headers))
    text += "#include <cstdio>\nusing namespace servewright::cuda;\nint main() {\n"
    text += "".join(f'  std::printf("%d\\n", int({value}));\n' for value in wanted.values()) + "}\n"
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "sizes.cpp", Path(folder) / "sizes"
        source.write_text(text)
        subprocess.run(
            [
                *("g++", "-std=c++17", "-DSW_FIBERS", "-w", "-I", str(nvcc.ROOT / "csrc")),
                *("-o", str(program), str(source)),
            ],
            check=True,
        )
        told = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    return dict(zip(wanted, map(int, told.split()), strict=True))


def _reports(text: str) -> dict[str, dict[str, int]]:
    """What ptxas says of each kernel, by mangled name."""
    reports = {}
    for part in text.split("Compiling entry function '")[1:]:
        name = part.partition("'")[0]
        numbers = {
            "registers": r"Used (\d+) registers",
            "smem": r"(\d+) bytes smem",
            "stack": r"(\d+) bytes stack frame",
            "spilled": r"(\d+) bytes spill stores",
        }
        found = {key: re.search(pattern, part) for key, pattern in numbers.items()}
        reports[name] = {key: int(match[1]) if match else 0 for key, match in found.items()}
    return reports


def _threads(ptx: str, mangled: str) -> int:
    found = re.search(rf"\.entry {re.escape(mangled)}\(.*?\.maxntid (\d+)", ptx, re.DOTALL)
    if not found:
        raise ValueError(f"{mangled} has no launch bounds")
    return int(found[1])


def main(arguments: list[str]) -> int:
    """Exit code: 1 when a kernel is not within its budget."""
    try:
        measured = {architecture: measure(architecture) for architecture in ARCHITECTURES}
    except nvcc.Missing as missing:
        print(missing, file=sys.stderr)
        return 1
    if arguments == ["--write"]:
        FILE.write_text(written(measured))
    wrong = []
    for architecture, kernels in measured.items():
        wrong += [f"{architecture} {line}" for line in compare(read(architecture), kernels)]
    print("\n".join(wrong) or "every kernel is within its budget")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
