"""The compiled kernels against csrc/cuda/budgets.toml, and the comparison itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hack import budgets, nvcc, roofline, sass
from hack.budgets import Budget, Measured, compare, resident_blocks

BUDGET = Budget(
    registers=80,
    instructions=1000,
    loop=300,
    wide_loads=4,
    other_loads=1,
    wide_copies=8,
    wide_stores=0,
    other_stores=4,
    barriers=2,
    tensor=8,
    shared=65536,
    blocks=2,
    in_flight=65536,
    waits=1,
    early_copies=6,
    early_loads=0,
)


@pytest.mark.parametrize("architecture", budgets.ARCHITECTURES)
def test_every_kernel_is_within_its_budget(architecture: str) -> None:
    try:
        nvcc.find()
        nvcc.disassembler()
    except nvcc.Missing as missing:
        pytest.skip(str(missing))
    wrong = compare(budgets.read(architecture), budgets.measure(architecture))
    assert not wrong, "\n".join([*wrong, "python -m hack.budgets --write, and review the diff"])


CHANGES: list[tuple[str, dict[str, Any], str]] = [
    ("the same", {}, ""),
    ("a register more", {"registers": 81}, "registers 81, the budget is 80"),
    ("a few registers fewer", {"registers": 77}, ""),
    (
        "many registers fewer, which nobody would notice growing back",
        {"registers": 75},
        "registers",
    ),
    ("an instruction in a hundred more", {"instructions": 1010}, ""),
    ("an instruction in ten more", {"instructions": 1100}, "instructions"),
    ("an instruction in ten fewer", {"instructions": 900}, "instructions"),
    ("a loop of a tenth more", {"loop": 330}, "loop 330, the budget is 300"),
    ("a scalar load more", {"other_loads": 2}, "other_loads 2, the budget is 1"),
    ("a scalar load fewer", {"other_loads": 0}, "other_loads"),
    ("a barrier more", {"barriers": 3}, "barriers"),
    ("no tensor operation", {"tensor": 0}, "tensor"),
    ("more shared memory", {"shared": 65600}, "shared"),
    ("a wait for the launch before left out", {"waits": 0}, "waits 0, the budget is 1"),
    ("a copy less before that wait", {"early_copies": 5}, "early_copies 5"),
    ("a load moved before that wait", {"early_loads": 1}, "early_loads 1"),
    ("too little in flight", {"in_flight": 16384}, "16384 bytes in flight, wants 32768"),
    (
        "too little in flight of plain loads",
        {"in_flight": 16384, "wide_copies": 0},
        "16384 bytes in flight, wants 32768",
    ),
]


@pytest.mark.parametrize(("changes", "told"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_growth_and_slack_are_told(changes: dict[str, Any], told: str) -> None:
    found = compare({"k": BUDGET}, {"k": Measured(replace(BUDGET, **changes), 0, 0)})
    assert any(told in line for line in found) if told else not found


def test_spills_are_never_within_a_budget() -> None:
    assert compare({"k": BUDGET}, {"k": Measured(BUDGET, 8, 2)}) == ["k: spills 8 bytes, local 2"]


def test_kernels_and_budgets_are_the_same_set() -> None:
    measured = Measured(BUDGET, 0, 0)
    assert compare({"old": BUDGET}, {"new": measured}) == [
        "new: no budget",
        "old: a budget, but no kernel",
    ]


@pytest.mark.parametrize(
    ("architecture", "registers", "shared", "threads", "blocks"),
    [
        ("sm_90", 128, 0, 128, 4),  # registers
        ("sm_90", 32, 72 << 10, 256, 3),  # shared memory
        ("sm_80", 32, 72 << 10, 256, 2),
        ("sm_80", 32, 0, 1024, 2),  # warps
        ("sm_80", 16, 0, 32, 32),  # blocks
        ("sm_90", 65, 0, 512, 1),  # 72 registers a lane, in steps of 8
    ],
)
def test_resident_blocks(
    architecture: str, registers: int, shared: int, threads: int, blocks: int
) -> None:
    assert resident_blocks(architecture, registers, shared, threads) == blocks


SASS = """\
//--------------------- .text.kernel --------------------------
.text.kernel:
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/              @!P0 LDG.E.128.CONSTANT R8, desc[UR4][R2.64+0x10] ;
        /*0020*/                   IADD3 R7, R7, R8, RZ ;
        /*0030*/                   LDG.E.U16 R9, desc[UR4][R2.64] ;
        /*0040*/                   LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] ;
        /*0050*/                   LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] ;
        /*0060*/                   LDGDEPBAR ;
        /*0068*/                   ACQBULK ;
        /*0070*/                   DEPBAR.LE SB0, 0x2 ;
        /*0080*/                   LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] ;
        /*0090*/                   LDGDEPBAR ;
        /*00a0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
.L_x_1:
        /*00b0*/                   HMMA.16816.F32.BF16 R12, R12, R16, RZ ;
        /*00b8*/              @P1  BRA `(.L_x_1) ;
        /*00c0*/                   STG.E desc[UR4][R2.64], R12 ;
        /*00d0*/                   STL [R1], R12 ;
        /*00e0*/                   EXIT ;
        /*00f0*/                   NOP ;
"""


def test_machine_code_is_counted() -> None:
    assert sass.kernels(SASS) == {
        "kernel": sass.Code(
            wide_loads=2,
            other_loads=1,
            wide_copies=3,
            other_stores=1,
            local=1,
            barriers=1,
            tensor=1,
            instructions=17,
            waits=1,
            early_copies=2,
            early_loads=3,
            loop=2,
            # Two loads of 16 bytes; two groups that the wait leaves and one behind it, of 32.
            flying=32 + 3 * 32,
        )
    }


def test_the_documented_prediction_is_that_of_the_budgets() -> None:
    assert roofline.DOCUMENT.read_text() == roofline.written(), "python -m hack.roofline --write"
