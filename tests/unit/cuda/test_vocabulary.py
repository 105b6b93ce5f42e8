"""Each promise of csrc/common/device.cuh, on the emulator; and that nvcc takes the same source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hack import nvcc

from support.emulated import (
    COPIES,
    ORDERS,
    Array,
    Copies,
    Emulated,
    Fault,
    Order,
    from_bfloat16,
    to_bfloat16,
)

SUPPORT = Path(__file__).resolve().parents[2] / "support"
PLAIN = Emulated()
GRID = {"grid_x": 3, "grid_y": 2, "grid_z": 2, "threads": 64}
HALF_LARGEST = 0x7C00


def normal(*shape: int) -> Array:
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("order", ORDERS)
def test_a_thread_knows_its_place(order: Order) -> None:
    out = PLAIN.run("places", scalars=GRID, order=order)["out"]
    z, y, x, thread = np.indices((2, 2, 3, 64)).reshape(4, -1)
    sizes = [np.full_like(x, size) for size in (3, 2, 2, 64)]
    assert np.array_equal(out, np.stack([x, y, z, thread, *sizes], 1))


def running_order(order: Order, seed: int = 1) -> list[int]:
    counter = np.zeros(1, np.uint32)
    scalars = {"blocks": 3, "threads": 64}
    ran = PLAIN.run("running_order", {"counter": counter}, scalars, order=order, seed=seed)
    return [int(thread) for thread in ran["order"]]


def test_threads_run_up_down_and_shuffled_by_seed() -> None:
    ascending = list(range(192))
    assert running_order("up") == ascending
    assert running_order("down") == ascending[::-1]
    shuffled = running_order("random", 1)
    assert sorted(shuffled) == ascending
    assert shuffled == running_order("random", 1)
    assert shuffled != running_order("random", 2)
    blocks = {seed: [t // 64 for t in running_order("random", seed)[::64]] for seed in range(8)}
    assert any(order != [0, 1, 2] for order in blocks.values())


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_reduce_through_shared_memory(order: Order) -> None:
    x = normal(3, 96)
    got = PLAIN.run("block_sums", {"x": x}, order=order)["sums"]
    assert np.allclose(got, x.sum(1), atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_lanes_of_a_warp_exchange_values(order: Order) -> None:
    x = normal(32).astype(np.float64)
    got = PLAIN.run("warp_words", {"x": x}, order=order)
    assert np.array_equal(got["pairs"], x + x.reshape(16, 2)[:, ::-1].reshape(-1))
    assert np.array_equal(got["rotated"], np.roll(x, -5).view(np.uint64))
    ballot = sum(1 << int(i) for i in np.flatnonzero(x > 0))
    assert got["ballot"].tolist() == [ballot] * 32
    assert got["any"].tolist() == [1] * 32
    assert PLAIN.run("warp_words", {"x": -abs(x)}, order=order)["any"].tolist() == [0] * 32


@pytest.mark.parametrize("copies", COPIES)
def test_async_copies_arrive_and_fill_with_zeros(copies: Copies) -> None:
    x = np.arange(1, 101, dtype=np.uint32)
    out = PLAIN.run("copies", {"x": x}, copies=copies)["out"]
    assert np.array_equal(out, np.concatenate([x, np.zeros(156, np.uint32)]))


def test_fresh_shared_memory_is_nan() -> None:
    got = PLAIN.run("fresh_shared")
    assert np.isnan(got["fixed"]).all()
    assert np.isnan(got["dynamic"]).all()


def test_atomics_lose_no_update() -> None:
    x = np.random.default_rng(2).integers(0, 1000, 192).astype(np.uint32)
    zeros: dict[str, Array] = {
        "integer": np.zeros(1, np.int32),
        "wide": np.zeros(1, np.uint64),
        "real": np.zeros(1, np.float32),
        "largest": np.zeros(1, np.uint32),
        "largest_wide": np.zeros(1, np.uint64),
    }
    for flavour in (PLAIN, Emulated("tsan")):
        got = flavour.run("totals", {"x": x, **zeros}, order="random")
        assert got["integer"][0] == -int(x.sum())
        assert got["wide"][0] == int(x.sum()) << 20
        assert got["real"][0] == x.sum()
        assert got["largest"][0] == x.max()
        assert got["largest_wide"][0] == int(x.max()) << 20
        assert np.array_equal(got["shared"], x.reshape(3, 64).sum(1))


@pytest.mark.parametrize("order", ORDERS)
def test_mma_multiplies_fragments_as_the_ptx_isa_lays_them_out(order: Order) -> None:
    a, b, c = to_bfloat16(normal(16, 16)), to_bfloat16(normal(8, 16)), normal(16, 8)
    d = PLAIN.run("mma_tile", {"a": a, "b": b, "c": c}, order=order)["d"]
    wanted = from_bfloat16(a).astype(np.float64) @ from_bfloat16(b).T.astype(np.float64) + c
    # 17 roundings of float32 on partial sums no larger than these.
    bound = 17 * 2.0**-24 * (abs(from_bfloat16(a)) @ abs(from_bfloat16(b)).T + abs(c))
    assert (abs(d - wanted) <= bound).all()


def test_numbers_round_as_they_promise() -> None:
    ties = np.array([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001], np.uint32).view(np.float32)
    special = np.array([0, -0.0, 1e-40, 3e38, np.inf, -np.inf], np.float32)
    x = np.concatenate([normal(1014) * 30, ties, special]).astype(np.float32)
    got = PLAIN.run("numbers", {"x": x})
    assert np.array_equal(got["narrow"], to_bfloat16(x))
    assert np.array_equal(got["packed"] & 0xFFFF, to_bfloat16(x))
    assert np.array_equal(got["packed"] >> 16, to_bfloat16(-x))
    less = [from_bfloat16(to_bfloat16(half)) - np.float32(1) for half in (x, -x)]
    assert np.array_equal(got["difference"] & 0xFFFF, to_bfloat16(less[0]))
    assert np.array_equal(got["difference"] >> 16, to_bfloat16(less[1]))
    wide = x.astype(np.float64)
    finite = np.isfinite(x) & (abs(x) < 1e18)
    assert np.array_equal(got["fused"][finite], (wide * wide + 1)[finite].astype(np.float32))
    usual = finite & (abs(x) > 1e-30) & (abs(x) < 100)
    for name, exact in (("exp2", np.exp2(wide[usual])), ("rsqrt", abs(wide[usual]) ** -0.5)):
        assert np.allclose(got[name][usual], exact, rtol=2.0**-21, atol=0), name


def test_a_narrow_nan_stays_nan() -> None:
    x = np.full(32, np.nan, np.float32)
    assert PLAIN.run("numbers", {"x": x})["narrow"].tolist() == [0x7FFF] * 32


def test_words_are_taken_apart() -> None:
    x = np.random.default_rng(3).integers(0, 2**32, 64, np.uint64)
    x[:4] = [0, 1, 2**31, 2**32 - 1]
    got = PLAIN.run("words", {"x": x.astype(np.uint32)})
    pairs = from_bfloat16(got["nibbles"].view(np.uint16)).reshape(-1, 2)
    assert np.array_equal(pairs, 128 + np.stack([x >> 4 & 15, x >> 20 & 15], 1))
    assert np.array_equal(got["masked"], x & 0x00FF00FF | 0x40004000)
    words = x.astype(np.uint32)
    assert np.array_equal(got["lower"], words & 0xFFFF | ~words << 16)
    assert np.array_equal(got["upper"], words >> 16 | ~words & 0xFFFF0000)
    assert got["ones"].tolist() == [int(word).bit_count() for word in x]
    assert got["zeros"].tolist() == [32 - int(word).bit_length() for word in x]
    assert np.array_equal(got["high"], x * np.uint64(0x9E3779B9) >> np.uint64(32))


def test_every_half_becomes_its_float() -> None:
    x = np.arange(2**16, dtype=np.uint16)
    got = PLAIN.run("halves", {"x": x})["out"]
    wanted = x.view(np.float16).astype(np.float32)
    assert np.array_equal(got, wanted, equal_nan=True)
    assert np.array_equal(np.signbit(got), np.signbit(wanted))


def test_a_read_past_the_end_is_nan_up_to_16_bytes_and_then_a_fault() -> None:
    x = normal(5)
    assert PLAIN.run("read_at", {"x": x}, {"index": 4})["out"][0] == x[4]
    assert np.isnan(PLAIN.run("read_at", {"x": x}, {"index": 7})["out"][0])
    for index in (8, -1030):
        with pytest.raises(Fault, match=rf"no access to byte {4 * index} of array x \(20 bytes\)"):
            PLAIN.run("read_at", {"x": x}, {"index": index})


@pytest.mark.parametrize("index", [5, 8, -1])
def test_address_sanitizer_finds_the_first_byte_past_an_array(index: int) -> None:
    says = rf"byte {4 * index} of array x \(20 bytes\)\n  in kernel read_at_kernel.* thread 7"
    with pytest.raises(Fault, match=says):
        Emulated("asan").run("read_at", {"x": normal(5)}, {"index": index})


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("start", "early"), [(0, 2), (1, 1)], ids=["behind", "beside"])
def test_a_launch_beside_another_sees_its_memory_when_it_has_waited(
    start: int, early: int, order: Order
) -> None:
    x = np.arange(96, dtype=np.uint32)
    got = PLAIN.run("look_beside", {"x": x}, {"start": start}, order=order)
    assert np.array_equal(got["early"], x + early)
    assert np.array_equal(got["late"], x + 2)
    assert np.array_equal(got["x"], x + 2)


def test_thread_sanitizer_tells_a_look_at_the_launch_before_it_has_ended() -> None:
    arrays = {"x": np.zeros(96, np.uint32)}
    tsan = Emulated("tsan")
    assert (tsan.run("look_beside", arrays, {"start": 0})["early"] == 2).all()
    with pytest.raises(Fault, match=r"a race on byte \d+ of array x"):
        tsan.run("look_beside", arrays, {"start": 1})


def test_a_kernel_without_end_meets_the_time_limit() -> None:
    says = r"the time limit is over\n  in kernel spin_for_ever_kernel, block \(0, 0, 0\), thread 0"
    with pytest.raises(Fault, match=says):
        PLAIN.run("spin_for_ever", time_limit_s=1)


def test_a_thread_that_overflows_its_stack_is_told() -> None:
    with pytest.raises(Fault, match=r"[\s\S]*overflow_stack_kernel, block \(0, 0, 0\), thread 0"):
        PLAIN.run("overflow_stack")


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({"threads": 48}, "48 threads a block; want a multiple of 32, at most 1024"),
        ({"threads": 1056}, "1056 threads a block"),
        ({"grid_x": 0}, r"a grid of \(0, 1, 1\) blocks"),
        ({"grid_y": 65536}, r"a grid of \(1, 65536, 1\) blocks"),
        ({"shared_bytes": 200_000}, "200000 bytes of dynamic shared memory"),
    ],
)
def test_a_launch_no_device_would_take_is_refused(shape: dict[str, int], says: str) -> None:
    usual = {"grid_x": 1, "grid_y": 1, "grid_z": 1, "threads": 32, "shared_bytes": 0}
    with pytest.raises(Fault, match=says):
        PLAIN.run("with_shape", scalars=usual | shape)


def test_what_no_thread_wrote_is_nan() -> None:
    usual = {"grid_x": 1, "grid_y": 1, "grid_z": 1, "threads": 32, "shared_bytes": 0}
    out = PLAIN.run("with_shape", scalars=usual)["out"]
    assert out.tolist() == [1, 0xFFFFFFFF]


def test_a_wrong_request_is_told() -> None:
    with pytest.raises(KeyError, match=r"no file tests/support/emulator_\*.cpp has SW_OP\(none\)"):
        PLAIN.run("none")
    with pytest.raises(Fault, match="x: want float32, came float64"):
        PLAIN.run("block_sums", {"x": np.zeros((1, 32))})
    with pytest.raises(Fault, match="op block_sums was given no x"):
        PLAIN.run("block_sums")


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("source", ["vocabulary.cu", "planted.cu"])
def test_nvcc_takes_the_same_source(source: str, architecture: str) -> None:
    try:
        compiled = nvcc.compile_kernels(SUPPORT / source, architecture)
    except nvcc.Missing as missing:
        pytest.skip(str(missing))
    assert "warning" not in compiled.report
