"""The kernels of csrc/cuda from nvcc's PTX: numbers, races, and what they load, store and collide.

Shapes are small: bytes, sectors and wavefronts do not depend on how often a pattern repeats.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hack import nvcc
from hack.ptx import Fault, Memory, Program, launch
from numpy.typing import NDArray

from support.decode_attention import Decode
from support.emulated import from_bfloat16, to_bfloat16
from support.planted_bugs import SOURCE, cases, numbers
from support.projections import (
    BF16,
    NAMES,
    Q4_0,
    Q4_1,
    Q8_0,
    Matrix,
    left_for_norm,
    normed_products,
    products,
    random_matrix,
    swiglu,
)
from support.ptx_ops import Ran, attention, gather, packed, project, sample
from support.sampling_rows import Rows, random_rows

Array = NDArray[Any]


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    try:
        nvcc.find()
    except nvcc.Missing as missing:
        pytest.skip(str(missing))


def whole(ran: Ran, wavefronts: float) -> Ran:
    """What holds for every kernel: no race, few sectors more than needed, few bank conflicts."""
    assert ran.result.races == []
    assert ran.excess() <= 1.1
    assert ran.result.shared_loads.excess <= wavefronts
    assert ran.result.shared_stores.excess <= wavefronts
    return ran


# ---- Attention ----


@pytest.mark.parametrize("head_dim", [64, 128])
def test_attention_reads_every_cached_position_once(head_dim: int) -> None:
    case = Decode([301, 77, 16, 1], 8, 2, head_dim)
    ran = whole(attention(case), 1.25)
    pool = ran.read("pool")
    exact = case.attended(pool, np.float64)
    error = np.abs(from_bfloat16(ran.read("out")) - exact)
    assert (error <= 2**-8 * np.abs(exact) + case.margin(pool)[:, :, None]).all()
    assert not ran.read("tickets").any()
    cached = sum(length - 1 for length in case.lengths)
    floor = 2 * 2 * head_dim * case.kv_heads * cached
    assert floor <= ran.loaded("pool") <= 1.02 * floor
    assert ran.memory.arrays["pool"].stores.bytes == 2 * 2 * head_dim * case.kv_heads * 4
    assert ran.memory.arrays["pool"].loads.scalar == 0
    # q, k and v, the new k and v, a row of the page table, a length, RoPE's row of cosines and of
    # sines, out. The splits' results and tickets stay in L2.
    small = sum(ran.memory.arrays[name].size for name in ("qkv", "page_table", "lengths", "out"))
    small += len(case.lengths) * (2 * 2 * head_dim * case.kv_heads + 4 * head_dim)
    in_l2 = [ran.memory.arrays[name] for name in ("partials", "tickets")]
    moved = ran.fetched() + ran.written() - sum(a.fetched + a.written for a in in_l2)
    assert moved <= 1.02 * (floor + small)
    early = attention(case, max_blocks=3, lazy=False)
    np.testing.assert_array_equal(early.read("out"), ran.read("out"))
    np.testing.assert_array_equal(early.read("pool"), pool)
    assert early.result.races == []


# ---- Projections ----

# Wavefronts over the ideal, by type: Q4_1's scales are 8 bytes a row, two wavefronts for 64 bytes.
WAVEFRONTS = {BF16: 1.01, Q8_0: 1.01, Q4_0: 1.01, Q4_1: 1.3}
TILINGS = [((2, 1), 1), ((2, 2), 9)]
TYPES = pytest.mark.parametrize("type_", [BF16, Q8_0, Q4_0, Q4_1], ids=NAMES)


def inputs(tokens: int, cols: int) -> tuple[Array, Array]:
    random = np.random.default_rng(tokens)
    x = random.standard_normal((tokens, cols)).astype(np.float32)
    return x, random.uniform(0.2, 2, cols).astype(np.float32)


def check_traffic(ran: Ran, w: Matrix, *names: str) -> None:
    """Weights come once, in 16 bytes a lane; DRAM gives little more than the op's floor."""
    weights = len(packed(w)) * len(names)
    assert ran.loaded(*names) == weights
    assert ran.excess(*names) == 1
    arrays = ran.memory.arrays
    read = [name for name in ("x", "squares") if name in arrays]
    assert all(arrays[name].loads.scalar == 0 for name in (*names, *read))
    rest = sum(array.size for name, array in arrays.items() if name not in names)
    rest += arrays["out"].loads.bytes  # the residual is read too
    # Sums leave by a lane's 4 bytes, a row of 8 lanes apart: sectors of 32 bytes, all used.
    assert ran.fetched() + ran.written() <= 1.02 * (weights + rest)
    whole(ran, WAVEFRONTS[w.type])


@TYPES
@pytest.mark.parametrize(("tiling", "tokens"), TILINGS)
@pytest.mark.parametrize("kind", ["NORMED", "SCALED"])
def test_a_normed_projection_reads_its_weights_once(
    kind: str, type_: int, tiling: tuple[int, int], tokens: int
) -> None:
    w = random_matrix(np.random.default_rng(type_), type_, 64, 576)
    x, norm = inputs(tokens, w.cols)
    ran = project(kind, w, x, tiling, norm=norm)
    wanted = normed_products(w, x, norm)
    assert (np.abs(ran.read("out") - wanted.values) <= wanted.errors).all()
    check_traffic(ran, w, "weights")


@TYPES
def test_a_residual_projection_reads_its_weights_once(type_: int) -> None:
    w = random_matrix(np.random.default_rng(type_), type_, 64, 576)
    x, _ = inputs(9, w.cols)
    residual = np.random.default_rng(0).standard_normal((9, w.rows)).astype(np.float32)
    _, norm = inputs(9, w.rows)
    ran = project("RESIDUAL", w, to_bfloat16(x), (2, 2), residual=residual, norm=norm)
    wanted = products(w, from_bfloat16(to_bfloat16(x)))
    error = np.abs(ran.read("out") - (wanted.values + residual))
    assert (error <= wanted.errors + 2.0**-24 * np.abs(ran.read("out"))).all()
    scaled, squares = left_for_norm(ran.read("out"), norm)
    np.testing.assert_array_equal(ran.read("next scaled"), scaled)
    np.testing.assert_allclose(ran.read("next squares"), squares, rtol=6 * 2.0**-24)
    check_traffic(ran, w, "weights")


@TYPES
@pytest.mark.parametrize("kind", ["GATE_UP", "SCALED_GATE_UP"])
def test_gate_and_up_read_their_weights_once(kind: str, type_: int) -> None:
    random = np.random.default_rng(type_)
    gate, up = (random_matrix(random, type_, 64, 576) for _ in range(2))
    x, norm = inputs(3, gate.cols)
    ran = project(kind, gate, x, (2, 1), norm=norm, up=up)
    wanted = swiglu(normed_products(gate, x, norm), normed_products(up, x, norm))
    error = np.abs(from_bfloat16(ran.read("out")) - wanted.values)
    assert (error <= wanted.errors).all()
    check_traffic(ran, gate, "weights", "up")


def test_the_moment_copies_land_changes_no_bit() -> None:
    w = random_matrix(np.random.default_rng(1), Q4_0, 48, 352)
    x, norm = inputs(2, w.cols)
    late, early = (project("SCALED", w, x, (2, 1), norm=norm, lazy=lazy) for lazy in (True, False))
    np.testing.assert_array_equal(late.read("out"), early.read("out"))
    assert early.result.races == []


def test_a_token_has_the_same_bits_in_any_tiling_and_batch() -> None:
    w = random_matrix(np.random.default_rng(2), Q8_0, 64, 480)
    x, norm = inputs(11, w.cols)
    alone = project("SCALED", w, x[10:], (1, 1), norm=norm).read("out")
    for tiling in ((2, 2), (4, 2), (2, 4)):
        batch = project("SCALED", w, x, tiling, norm=norm).read("out")
        np.testing.assert_array_equal(batch[10:], alone)


@TYPES
def test_an_embedding_s_rows_are_exact(type_: int) -> None:
    w = random_matrix(np.random.default_rng(type_), type_, 37, 576)
    ids = np.array([36, 0, 17, -1], np.int32)
    norm = np.random.default_rng(0).uniform(0.2, 2, w.cols).astype(np.float32)
    ran = gather(w, ids, norm)
    wanted = w.weights[ids].astype(np.float32)
    wanted[3] = 0  # no row
    np.testing.assert_allclose(ran.read("out"), wanted, rtol=2.0**-23)
    scaled, squares = left_for_norm(ran.read("out"), norm)
    np.testing.assert_array_equal(ran.read("scaled"), scaled)
    np.testing.assert_allclose(ran.read("squares"), squares, rtol=9 * 2.0**-24)
    assert ran.result.races == []
    arrays = ran.memory.arrays
    # Half of a weight's sector is another row's (three rows here, each of a tile of its own).
    a_column = {BF16: 4, Q8_0: 2.5, Q4_0: 1.5, Q4_1: 1.5}[type_]
    assert arrays["weights"].fetched == a_column * 3 * w.cols
    assert arrays["norm"].fetched == arrays["norm"].size
    for name in ("out", "scaled", "squares"):
        assert arrays[name].written == arrays[name].stores.bytes == arrays[name].size
    # A lane's 32 bytes leave in two stores of 16; its sector is whole in L2.
    assert arrays["out"].stores.excess == 2


# ---- Sampling ----


def test_tokens_are_the_reference_s() -> None:
    rows = random_rows(5, 24, 1003)
    ran = sample(rows)
    assert ran.result.races == []
    is_finite = ran.read("finite") == 1
    assert is_finite.sum() >= 20
    np.testing.assert_array_equal(ran.read("token_ids")[is_finite], rows.by_reference()[is_finite])


@pytest.mark.parametrize(
    "columns", [{"temperature": 0}, {}, {"top_p": 0.9}, {"top_k": 40, "top_p": 0.9}]
)
def test_a_row_by_several_blocks_reads_its_logits_once_from_memory(columns: dict[str, Any]) -> None:
    logits = np.random.default_rng(3).normal(0, 3, (2, 4099)).astype(np.float32)
    rows = Rows(logits, **columns)
    ran = sample(rows, parts=3)
    assert ran.result.races == []
    np.testing.assert_array_equal(ran.read("token_ids"), rows.by_reference())
    assert ran.memory.arrays["logits"].fetched <= 1.02 * logits.nbytes
    # A greedy row is scanned in parts, of a draw's each block knows the maximum by itself.
    assert ran.loaded("logits") <= (1.1 if columns.get("temperature") == 0 else 4.2) * logits.nbytes
    assert ran.excess("logits") <= 1.1


def test_rows_read_their_logits_as_often_as_their_parameters_ask() -> None:
    logits = np.random.default_rng(3).normal(0, 3, (2, 4096)).astype(np.float32)
    asked: list[tuple[float, dict[str, Any]]] = [
        (1, {"temperature": 0}),
        # The maximum, the sum of the weights, the token's place: no exponential is kept.
        (3.1, {"temperature": 1}),
        # Weights are kept: the rest reads these.
        (2, {"temperature": 1, "top_k": 40, "top_p": 0.9}),
    ]
    for passes, columns in asked:
        rows = Rows(logits, **columns)
        ran = sample(rows)
        np.testing.assert_array_equal(ran.read("token_ids"), rows.by_reference())
        assert ran.loaded("logits") <= passes * logits.nbytes
        assert ran.memory.arrays["logits"].fetched == logits.nbytes
        assert ran.excess("logits") <= 1.1


# ---- Planted bugs ----


@dataclass(frozen=True)
class Launch:
    blocks: int
    threads: int
    order: str  # of parameters: arrays by name, "#" a number of stages
    outputs: dict[str, int]
    dynamic_bytes: int = 0


LAUNCHES = {
    "sum_rows": Launch(2, 64, "x sums count", {"sums": 2}),
    "stream_rows": Launch(1, 64, "x out #", {"out": 256}),
    "two_phases": Launch(3, 32, "x between counter out", {"between": 96, "out": 96}),
    "rotate_warp": Launch(2, 64, "x out", {"out": 128}),
    "multiply": Launch(1, 32, "a b d", {"d": 128}, 768),
}


def verdict(op: str, bug: str, *, lazy: bool) -> str | None:
    """What the interpreter says of a planted bug; None when all looks right."""
    program = Program(nvcc.compile_kernels(SOURCE, "sm_80").ptx)
    how, case, memory = LAUNCHES[op], cases()[op], Memory()
    at = {
        name: memory.place(name, values, constant=name in "xab")
        for name, values in case.arrays.items()
    }
    for name, count in how.outputs.items():
        at[name] = memory.place_poisoned(name, (count,), np.float32)
    parameters = b""
    for name in how.order.split():
        parameters += struct.pack("<i4x" if name == "#" else "<Q", 5 if name == "#" else at[name])
    parameters += struct.pack("<q", numbers()[bug])
    try:
        result = launch(
            program.kernel(f"{op}_kernel"),
            memory,
            (how.blocks, 1, 1),
            (how.threads, 1, 1),
            parameters,
            dynamic_bytes=how.dynamic_bytes,
            lazy=lazy,
            resident=True,
        )
    except Fault as fault:
        return str(fault)
    if result.races:
        return result.races[0]
    for name, wanted in case.wanted.items():
        if not np.allclose(memory.read(name).reshape(wanted.shape), wanted, rtol=1e-5, atol=1e-5):
            return f"wrong numbers in {name}"
    return None


FOUND = {
    ("sum_rows", "MISSING_BARRIER"): "read after write: line .*planted.cu",
    ("sum_rows", "BARRIERS_APART"): "different barriers",
    ("sum_rows", "DIVERGENT_SHUFFLE"): "deadlock; 128 threads wait at a meeting: line",
    ("sum_rows", "GLOBAL_READ_PAST_END"): r"of x \(\d+ bytes\)",
    ("sum_rows", "GLOBAL_WRITE_PAST_END"): r"of sums \(\d+ bytes\)",
    ("sum_rows", "SHARED_WRITE_PAST_END"): "in no variable",
    ("sum_rows", "SHARED_READ_PAST_END"): "in no variable",
    ("sum_rows", "WRITE_TO_INPUT"): "a store into x",
    ("sum_rows", "LOST_UPDATE"): "wrong numbers in count",
    ("stream_rows", "MISSING_WAIT"): "before the asynchronous copy was waited for|before its copy",
    ("stream_rows", "WEAK_WAIT"): "before the asynchronous copy was waited for",
    ("stream_rows", "MISSING_BARRIER_AFTER_WAIT"): "read after write|write after",
    ("stream_rows", "BUFFER_REUSED_TOO_EARLY"): "write after read",
    ("stream_rows", "COPY_PAST_END"): r"of x \(\d+ bytes\)",
    ("stream_rows", "MISALIGNED_COPY"): "not aligned to 16",
    ("two_phases", "GRID_BARRIER_FOR_TOO_MANY"): "livelock",
    ("rotate_warp", "MISSING_WARP_BARRIER"): "read after write",
    ("rotate_warp", "SHUFFLE_AS_BARRIER"): "read after write",
    ("multiply", "WRONG_FRAGMENT"): "wrong numbers in d",
    ("multiply", "MISALIGNED_VECTOR"): "not aligned to 16",
}


# What this witness cannot see: order between blocks, and barriers that the hardware lets pass
# because the other threads have ended. The emulator finds them.
UNSEEN = [
    ("sum_rows", "DIVERGENT_BARRIER"),
    ("two_phases", "MISSING_GRID_BARRIER"),
    ("two_phases", "GRID_BARRIER_WITHOUT_RELEASE"),
]


@pytest.mark.parametrize(("op", "bug"), UNSEEN, ids=lambda x: x)
def test_a_planted_bug_is_not_seen(op: str, bug: str) -> None:
    assert verdict(op, bug, lazy=True) is None


@pytest.mark.parametrize("op", LAUNCHES)
def test_kernels_without_a_bug_are_silent(op: str) -> None:
    for lazy in (True, False):
        assert verdict(op, "NONE", lazy=lazy) is None


@pytest.mark.parametrize(("op", "bug"), FOUND, ids=lambda x: x)
def test_a_planted_bug_is_found(op: str, bug: str) -> None:
    for lazy in (True, False):
        told = verdict(op, bug, lazy=lazy)
        assert told is not None
        assert re.search(FOUND[op, bug], told), told
