"""Sampling of csrc/cuda, emulated, against the CPU's sampler and the reference on the same logits.

Tokens are equal, not nearly so: the kernel repeats the CPU's double arithmetic, and sums are exact
integers (csrc/common/draws.h). Where the reference sums doubles instead, the two can differ only if
a random number lies within 1e-8 of an edge.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
import pytest

from servewright_runtime import _native
from support.emulated import ORDERS, Array, Emulated, Fault, Order
from support.sampling_rows import MAX_TOP_LOGPROBS, PLAIN, Rows, Sampled, random_rows

GATHERED = 512  # of selection.cuh
SMALL_VOCAB = 4096  # of sampling.cu: rows up to it take 128 threads, others 512


def check(rows: Rows, emulated: Emulated = PLAIN, *, reference: bool = True, **how: Any) -> Sampled:
    got, wanted = rows.run(emulated, **how), rows.on_cpu()
    np.testing.assert_array_equal(got.finite, wanted.finite)
    np.testing.assert_array_equal(got.token_ids, wanted.token_ids)
    is_finite = got.finite == 1
    if reference:
        np.testing.assert_array_equal(got.token_ids[is_finite], rows.by_reference()[is_finite])
    counts = rows.columns["top_logprobs"]
    for row in np.flatnonzero(is_finite & ((rows.columns["logprobs"] == 1) | (counts > 0))):
        assert_near(got.logprobs[row], wanted.logprobs[row])
        best = slice(counts[row])
        np.testing.assert_array_equal(got.top_ids[row, best], wanted.top_ids[row, best])
        assert_near(got.top_values[row, best], wanted.top_values[row, best])
    return got


def assert_near(got: Array, wanted: Array) -> None:
    """One float32 rounding of a double on each side."""
    np.testing.assert_allclose(got, wanted, rtol=3e-7, atol=1e-6)


def normal(count: int, vocab: int, seed: int = 0) -> Array:
    logits: Array = np.random.default_rng(seed).normal(0, 3, (count, vocab)).astype(np.float32)
    return logits


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("vocab", [1, 2, 3, 31, 32, 255, 256, 257, 1003, 3001])
def test_tokens_are_the_cpu_s_and_the_reference_s(vocab: int, order: Order) -> None:
    check(random_rows(vocab * 3 + ORDERS.index(order), 40, vocab), order=order, seed=vocab)


@pytest.mark.parametrize("vocab", [SMALL_VOCAB + 1, 9001])
def test_longer_rows_are_drawn_by_512_threads(vocab: int) -> None:
    check(random_rows(vocab, 16, vocab), order="random")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("vocab", "parts"), [(1, 3), (257, 2), (1003, 4), (3001, 3)])
def test_rows_by_several_blocks_give_the_same_tokens(vocab: int, parts: int, order: Order) -> None:
    """Some parts have no ids where there are more parts than segments."""
    rows = random_rows(vocab + parts, 33, vocab)
    cut = check(rows, parts=parts, threads=64, order=order, seed=parts, launches=2)
    whole = rows.run(parts=1)
    np.testing.assert_array_equal(cut.token_ids, whole.token_ids)
    np.testing.assert_array_equal(cut.logprobs, whole.logprobs)
    np.testing.assert_array_equal(cut.top_values, whole.top_values)


def test_a_part_without_a_finite_logit_is_told_by_all() -> None:
    logits = normal(6, 1100)
    logits[0, 1090] = logits[1, 3] = np.nan
    logits[2, 700:] = logits[3, :1000] = -np.inf
    logits[4] = np.nan
    logits[5, 600] = np.inf
    for temperature in (0, 1):
        got = check(Rows(logits, temperature=temperature), parts=4, threads=32)
        assert not got.finite.any()


def test_a_vocabulary_of_49152() -> None:
    rows = Rows(
        normal(5, 49152),
        temperature=[0, 0.7, 1, 1, 1],
        top_k=[0, 0, 50, 0, 20000],
        top_p=[1, 1, 1, 0.95, 0.999],
        top_logprobs=[20, 0, 0, 0, 0],
    )
    check(rows)


def test_exponentials_have_the_cpu_s_bits() -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate([-rng.exponential(10, 5000), -rng.uniform(0, 480, 5000)]).astype(np.float32)
    x = np.clip(x, -480, 0)
    x[:2] = 0, -480
    kernel = PLAIN.run("sampling_exponential", {"x": (x.astype(np.float64)) / 0.7})["out"]
    usable = [name for name, is_usable in _native.variants() if is_usable and name != "base"]
    for variant in usable:  # `base` has no fused multiply-add
        np.testing.assert_array_equal(kernel, _native.exponentials(variant, x, 0.7))
    np.testing.assert_allclose(kernel, np.exp(x.astype(np.float64) / 0.7), rtol=4e-16)


def test_quotients_by_a_shared_reciprocal_are_rounded_correctly() -> None:
    rng = np.random.default_rng(3)
    divisor = (2.0 ** rng.uniform(-149, 127, 100_000)).astype(np.float32).astype(np.float64)
    divisor[::2] = rng.uniform(0.01, 3, 50_000).astype(np.float32)
    divisor[1::4] = np.nextafter(np.float32(2) ** rng.integers(-9, 9, 25_000), np.float32(0))
    x = -divisor * rng.choice([1e-30, 1e-9, 1e-3, 1, 33], 100_000) * rng.random(100_000)
    x[::6] = x[::6].astype(np.float32)  # differences of logits are short
    x[:9] = 0
    out = PLAIN.run("sampling_quotient", {"x": x, "divisor": divisor})["out"]
    np.testing.assert_array_equal(out, x / divisor)


def test_shares_and_places_are_exact() -> None:
    rng = np.random.default_rng(2)
    count = 2000
    tops = np.concatenate([rng.random(count // 2), 2.0 ** -rng.uniform(0, 149, count // 2)]).astype(
        np.float32
    )
    tops = np.clip(tops, np.float32(1e-45), np.nextafter(np.float32(1), np.float32(0)))
    totals = rng.integers(1, 2**63, count, dtype=np.uint64) >> rng.integers(0, 60, count).astype(
        np.uint64
    )
    totals = np.maximum(totals, 1)
    bits = rng.integers(0, 2**53, count, dtype=np.uint64)
    seeds = rng.integers(0, 2**64, count, dtype=np.uint64)
    out = PLAIN.run("draw_numbers", {"top_p": tops, "total": totals, "bits": bits, "seed": seeds})
    for i in range(count):
        total = int(totals[i])
        assert out["wanted"][i] == max(ceil(Fraction(float(tops[i])) * total), 1)
        assert out["place"][i] == int(bits[i]) * total >> 53 < total
        assert float(out["random"][i]) * 2.0**-53 == _native.uniform(int(seeds[i]), int(bits[i]))


def test_an_exact_share_of_equals_keeps_exactly_so_many() -> None:
    for kept in (1, 2, 511, 512, 513, 1023):
        rows = Rows(np.zeros((40, 1024)), kept, top_p=kept / 1024)
        ids = check(rows).token_ids
        assert ids.max() < kept <= 2 * ids.max() + 2
    assert check(Rows(np.zeros((20, 1024)), top_k=3)).token_ids.max() == 2


@pytest.mark.parametrize("vocab", [GATHERED, GATHERED + 1, 2500])
@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-8, 1e-15])
def test_many_keys_of_one_bin_are_told_apart(vocab: int, spread: float) -> None:
    """Weights that agree in ever more of their leading bits, in no order of ids."""
    rng = np.random.default_rng(vocab)
    logits = rng.choice([0.0, -spread, -2 * spread, -30], (12, vocab)) * rng.uniform(1, 2, vocab)
    tops = rng.integers(1, vocab, 12)
    # Where weights differ in the last bit, the reference's exponential orders them its own way.
    reference = spread > 1e-14
    tops_p = np.where(np.arange(12) % 2, 1, 0.7)
    check(Rows(logits, 1, top_k=tops, top_p=tops_p), reference=reference)
    check(Rows(logits, 2, top_p=rng.random(12)), reference=reference)


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = np.zeros((3, 700))
    logits[1, [699, 300, 301]] = 5
    logits[2, ::2] = -0.0
    got = check(Rows(logits, temperature=0))
    np.testing.assert_array_equal(got.token_ids, [0, 300, 0])


def test_rows_with_nan_or_infinity_have_no_distribution() -> None:
    nan, inf = np.nan, np.inf
    logits = np.array(
        [
            [1, nan, 3, 3, -inf],
            [nan] * 5,
            [-inf] * 5,
            [nan, -inf, nan, nan, nan],
            [0, inf, inf, nan, 9],
            [1, 2, 3, 4, nan],
        ]
    )
    histories = [[], [1, 2], [], [], [3], [2, 2]]
    for temperature in (0, 1):
        rows = Rows(
            logits,
            temperature=temperature,
            top_p=0.5,
            histories=histories,
            logprobs=1,
            top_logprobs=3,
        )
        got = check(rows)
        np.testing.assert_array_equal(got.token_ids, [2, 0, 0, 0, 1, 3])
        assert not got.finite.any()
        assert np.isnan(got.logprobs).all()
        np.testing.assert_array_equal(got.top_ids[:, :3], np.tile(np.arange(3), (6, 1)))


def test_long_histories_and_repeated_biases() -> None:
    rng = np.random.default_rng(4)
    count, vocab = 6, 301
    for temperature in (0, 1):
        rows = Rows(
            normal(count, vocab),
            temperature=temperature,
            presence=rng.uniform(-2, 2, count),
            frequency=rng.uniform(-0.1, 0.1, count),
            repetition=[1, 0.5, 2, 1e-3, 1e3, 1.1],
            histories=[rng.integers(0, vocab, 3000).tolist() for _ in range(count)],
            history_prompts=[0, 1, 1500, 2999, 3000, 7],
            # Sums of three values that another order would round differently.
            biases=[[(i % 100, [0.1, 1e8, -1e8][i // 100]) for i in range(300)]] * count,
        )
        check(rows, order="random", launches=3)  # the workspace as the launch before left it


@pytest.mark.parametrize("columns", [{}, {"top_p": 0.9}, {"top_k": 30}, {"top_k": 9, "top_p": 0.5}])
def test_a_token_depends_on_its_row_alone(columns: dict[str, Any]) -> None:
    """Not on its neighbours, and not on the size of the block, which the vocabulary decides."""
    logits = normal(9, SMALL_VOCAB - 3)
    together = check(Rows(logits, 5, **columns)).token_ids
    longer = np.pad(logits, ((0, 0), (0, 4000)), constant_values=-1e30)
    np.testing.assert_array_equal(Rows(longer, 5, **columns).run().token_ids, together)
    alone = Rows(logits[4:5], **columns)
    for name in ("seed", "draw"):
        alone.columns[name][:] = Rows(logits, 5).columns[name][4]
    assert alone.run().token_ids[0] == together[4]


def test_only_rows_that_ask_get_logprobs() -> None:
    rows = Rows(normal(4, 77), logprobs=[0, 1, 0, 0], top_logprobs=[0, 0, MAX_TOP_LOGPROBS, 0])
    got = check(rows)
    np.testing.assert_array_equal(np.isnan(got.logprobs), [True, False, False, True])
    assert np.isnan(got.top_values[[0, 1, 3]]).all()
    exact = rows.logits[:, :77].astype(np.float64)
    exact -= np.log(np.exp(exact).sum(1, keepdims=True))
    np.testing.assert_allclose(got.logprobs[1], exact[1, got.token_ids[1]], rtol=3e-7)
    np.testing.assert_allclose(got.top_values[2], -np.sort(-exact[2])[:20], rtol=3e-7)


def crowded_rows(count: int, vocab: int) -> Rows:
    """The best logprobs are with few threads: 19 of 128 hold all of them."""
    logits = np.random.default_rng(6).normal(0, 1, (count, vocab))
    logits[:, np.arange(vocab) % 512 < 76] += 30
    logits[1::3] = np.round(logits[1::3])
    logits[2::3] = 4.0
    return Rows(logits, temperature=0, top_logprobs=MAX_TOP_LOGPROBS)


@pytest.mark.parametrize("vocab", [SMALL_VOCAB, SMALL_VOCAB + 5])
def test_best_logprobs_that_few_threads_hold_are_all_found(vocab: int) -> None:
    check(crowded_rows(3, vocab))


def test_no_rows_are_no_launch() -> None:
    assert Rows(np.zeros((0, 9))).run().token_ids.shape == (0,)


def test_the_launcher_refuses_what_the_kernel_cannot_read() -> None:
    narrow = Rows(normal(2, 8))
    narrow.vocab = 9
    odd = Rows(normal(2, 8))
    odd.logits = odd.logits[:, :6]
    odd.vocab = 5
    for rows in (narrow, odd):
        with pytest.raises(Fault, match="1"):
            rows.run()
    wide = Rows(normal(2, 8))
    grids: list[dict[str, Any]] = [{"parts": 67}, {"parts": -1}, {"threads": 48}, {"threads": 544}]
    for grid in grids:
        with pytest.raises(Fault, match="1"):
            wide.run(**grid)


# Rows that several blocks share.
PARTED: list[dict[str, Any]] = [
    {"temperature": 0},
    {},
    {"top_p": 0.9, "logprobs": 1, "top_logprobs": 5},
    {"top_k": 30, "top_p": 0.5},
]


def test_the_address_sanitizer_has_nothing_to_say() -> None:
    check(random_rows(1, 30, 1003), Emulated("asan"), launches=2)
    check(random_rows(2, 20, 29), Emulated("asan"), order="down")
    check(random_rows(3, 20, 1003), Emulated("asan"), parts=3, threads=64)


@pytest.mark.parametrize("order", ["up", "random"])
def test_the_thread_sanitizer_finds_no_race(order: Order) -> None:
    """One row a launch: adjusted, both filters with their refinements, logprobs both ways."""
    logits = np.random.default_rng(3).choice([0.0, -1e-8, -1e-15, -1], (1, 2100))
    rows = Rows(
        logits,
        top_k=1200,
        top_p=0.8,
        repetition=1.1,
        frequency=0.1,
        histories=[[5, 6, 5, 7, 5] * 30],
        history_prompts=40,
        biases=[[(5, 0.5), (9, -0.5), (5, 0.25)]],
        logprobs=1,
        top_logprobs=20,
    )
    check(rows, Emulated("tsan"), order=order, launches=2)
    for columns in PARTED:
        cut = Rows(normal(1, 1003), 2, **columns)
        check(cut, Emulated("tsan"), order=order, launches=2, parts=3, threads=64)
    check(crowded_rows(1, SMALL_VOCAB), Emulated("tsan"), order=order)
    check(Rows(normal(1, 1003)), Emulated("tsan"), order=order)
