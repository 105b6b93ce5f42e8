"""The PTX interpreter: what it calls a fault, a race, or refuses."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hack.ptx import Fault, Refused

from support.ptx_text import run

SHARED = """
    .shared .align 16 .b8 first[128];
    .shared .align 16 .b8 second[128];
    shl.b32 %r1, %r0, 2;
    mov.u32 %r2, first;
    add.s32 %r3, %r2, %r1;
"""

FAULTY = {
    "a read past an array's end": (
        "mad.wide.u32 %rd2, %r0, 4, %rd0; ld.global.u32 %r1, [%rd2+4];",
        r"4 bytes at offset 128 of x \(128 bytes\).*line \d+: ld.global.u32",
    ),
    "a misaligned vector": (
        "mad.wide.u32 %rd2, %r0, 4, %rd0; ld.global.v2.u32 {%r1, %r2}, [%rd2];",
        "not aligned to 8",
    ),
    "a shared write past its variable": (
        SHARED + "st.shared.u32 [%r3+4], %r1;",
        "in no variable: line",
    ),
    "a barrier that some threads miss": (
        "setp.lt.u32 %p1, %r0, 16; @%p1 bra $L_a; bar.sync 0; bra.uni $L_b;"
        " $L_a: add.s32 %r1, %r0, 1; bar.sync 0; $L_b: mov.u32 %r1, 0;",
        "different barriers: line .*, line",
    ),
    "a shuffle that waits for ever": (
        "setp.lt.u32 %p1, %r0, 16; @%p1 bra $L_a; shfl.sync.idx.b32 %r1, %r0, 0, 31, -1;"
        " bra.uni $L_b; $L_a: bar.sync 0; $L_b: mov.u32 %r1, 0;",
        "deadlock",
    ),
    "a copy nobody waits for": (
        SHARED + "and.b32 %r4, %r0, 7; shl.b32 %r5, %r4, 4; add.s32 %r6, %r2, %r5;"
        " cp.async.cg.shared.global [%r6], [%rd0], 16; cp.async.commit_group;",
        "ends before its copy was waited for",
    ),
    "a read-only load of what the launch writes": (
        "mad.wide.u32 %rd2, %r0, 4, %rd0; st.global.u32 [%rd2], %r0;"
        " ld.global.nc.v4.u32 {%r1, %r2, %r3, %r4}, [%rd0];",
        "through the read-only path: line",
    ),
    "a store into what the read-only path has loaded": (
        "ld.global.nc.u32 %r1, [%rd0]; st.global.u32 [%rd0], %r0;",
        "through the read-only path: line",
    ),
    "a spin for what nobody brings": (
        "$L_a: ld.acquire.gpu.u32 %r1, [%rd0]; nanosleep.u32 20; setp.eq.u32 %p1, %r1, 0;"
        " @%p1 bra $L_a;",
        "livelock",
    ),
    "a trap": ("trap;", "trap"),
}


@pytest.mark.parametrize(("body", "told"), FAULTY.values(), ids=FAULTY)
def test_a_fault_is_told(body: str, told: str) -> None:
    with pytest.raises(Fault, match=re.compile(told, re.DOTALL)):
        run(body, {"x": np.zeros(32, np.uint32)})


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("tex.1d.v4.f32.s32 {%f1, %f2, %f3, %f4}, [p0, {%r1}];", r"line \d+: tex"),
        ("wgmma.fence.sync.aligned;", "wgmma"),
        (".local .align 4 .b8 \t__local_depot0[8];", "spilled"),
        ("ld.local.u32 %r1, [%rd0];", "spilled"),
        ("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f1}, {%r1}, {%r2}, {%f2};", "mma"),
        ("bar.sync 0, 64;", "some threads"),
        ("add.rz.f32 %f1, %f2, %f3;", "add.rz"),
        ("cvt.rz.f32.f64 %f1, %fd1;", "cvt.rz"),
    ],
)
def test_what_is_unknown_is_refused_by_name(body: str, told: str) -> None:
    with pytest.raises(Refused, match=told):
        run(body, {"x": np.zeros(32, np.uint32)})


# ---- Races ----

COPY = (
    SHARED
    + """
    and.b32 %r4, %r0, 7;
    shl.b32 %r5, %r4, 4;
    add.s32 %r6, %r2, %r5;
    setp.lt.u32 %p1, %r0, 8;
    cvt.u64.u32 %rd5, %r5;
    add.s64 %rd6, %rd0, %rd5;
    @%p1 cp.async.cg.shared.global [%r6], [%rd6], 16;
    cp.async.commit_group;
"""
)
RACES = {
    "another warp's write is read": (
        SHARED + "and.b32 %r4, %r1, 127; add.s32 %r5, %r2, %r4; st.shared.u32 [%r5], %r0;"
        " ld.shared.u32 %r6, [first];",
        ["read after write", "write after write"],
    ),
    "a neighbour's write is read behind a warp barrier": (
        SHARED + "setp.lt.u32 %p1, %r0, 32; @!%p1 ret; st.shared.u32 [%r3], %r0;"
        " bar.warp.sync -1; xor.b32 %r4, %r1, 4; add.s32 %r5, %r2, %r4; ld.shared.u32 %r6, [%r5];",
        [],
    ),
    "a neighbour's write is read behind a shuffle": (
        SHARED + "setp.lt.u32 %p1, %r0, 32; @!%p1 ret; st.shared.u32 [%r3], %r0;"
        " shfl.sync.bfly.b32 %r9, %r0, 1, 31, -1; xor.b32 %r4, %r1, 4; add.s32 %r5, %r2, %r4;"
        " ld.shared.u32 %r6, [%r5];",
        ["read after write"],
    ),
    "what others still read is overwritten": (
        SHARED + "setp.eq.u32 %p1, %r0, 40; @%p1 st.shared.u32 [first], %r0; bar.sync 0;"
        " ld.shared.u32 %r6, [first]; @%p1 st.shared.u32 [first], %r0;",
        ["write after read"],
    ),
    "nobody wrote what is read": (
        SHARED + "ld.shared.u32 %r6, [second];",
        ["nobody wrote"],
    ),
    "a copy is read before the wait": (
        COPY + "@%p1 ld.shared.u32 %r7, [%r6]; cp.async.wait_group 0;",
        ["nobody wrote", "before the asynchronous copy"],
    ),
    "a copy is read behind the wait, by another thread": (
        COPY + "cp.async.wait_group 0; ld.shared.u32 %r7, [%r6];",
        ["read after write"],
    ),
    "a copy is read behind wait and barrier": (
        COPY + "cp.async.wait_group 0; bar.sync 0; ld.shared.u32 %r7, [%r6];",
        [],
    ),
    "a copy overwrites what others still read": (
        COPY + "cp.async.wait_group 0; bar.sync 0; ld.shared.u32 %r7, [%r6];"
        " @%p1 cp.async.cg.shared.global [%r6], [%rd6], 16; cp.async.wait_all;",
        ["write after read"],
    ),
}


@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "eager"])
@pytest.mark.parametrize(("body", "kinds"), RACES.values(), ids=RACES)
def test_races_are_found_and_only_they(body: str, kinds: list[str], lazy: bool) -> None:
    _, result = run(body, {"x": np.zeros(64, np.uint32)}, threads=64, lazy=lazy)
    for kind in kinds:
        assert any(kind in race for race in result.races), result.races
    assert bool(result.races) == bool(kinds), result.races


def test_the_bytes_of_a_copy_move_late_or_early() -> None:
    body = (
        COPY
        + """
    mov.u32 %r9, 7;
    @%p1 st.global.u32 [%rd6], %r9;
    cp.async.wait_group 0;
    bar.sync 0;
    ld.shared.u32 %r7, [%r3];
    mad.wide.u32 %rd7, %r0, 4, %rd1;
    st.global.u32 [%rd7], %r7;
"""
    )
    for lazy in (True, False):
        arrays = {"x": np.arange(32, dtype=np.uint32), "out": np.zeros(32, np.uint32)}
        memory, _ = run(body, arrays, lazy=lazy)
        found = memory.read("out")
        assert found[4] == (7 if lazy else 4), "the source changed between start and wait"
        assert found[5] == 5
