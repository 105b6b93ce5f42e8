"""RoPE, append and causal attention of a prompt's chunks, emulated: numbers, bits, order, races."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from support.decode_attention import PAGE, Decode
from support.emulated import (
    COPIES,
    ORDERS,
    Array,
    Copies,
    Emulated,
    Fault,
    Flavour,
    Order,
    from_bfloat16,
    to_bfloat16,
)
from support.prefill_chunks import BF16, FLOAT32, Sequence

PLAIN = Emulated()
SIZES = pytest.mark.parametrize("head_dim", [64, 128])
LAYOUTS = pytest.mark.parametrize("interleaved", [True, False], ids=["adjacent", "halves"])
PRODUCTS = pytest.mark.parametrize("product", [FLOAT32, BF16], ids=["float32", "bf16"])


def check_append(sequence: Sequence, first: int, tokens: int) -> None:
    """Pool and queries to the bit; no other byte of the pool is touched."""
    got = sequence.append(PLAIN, first, tokens)
    np.testing.assert_array_equal(got["pool"], sequence.pool(first + tokens))
    np.testing.assert_array_equal(got["queries"], sequence.queries()[first : first + tokens])


def check(sequence: Sequence, first: int, tokens: int) -> Array:
    """out, against float64: by the kernel's bound, and by what others' arithmetic gives."""
    out = sequence.attend(PLAIN, first, tokens, {"row_tiles": 1})
    both = sequence.attend(PLAIN, first, tokens, {"row_tiles": 2})
    np.testing.assert_array_equal(out, both)
    exact, margin = sequence.attended(first, tokens)
    plain, _ = sequence.attended(first, tokens, plain=True)
    error = abs(from_bfloat16(out) - exact)
    usual = abs(from_bfloat16(to_bfloat16(plain)).reshape(plain.shape) - exact)
    assert (error <= margin).all()
    # flash-attention's rule: twice the error of plain arithmetic in the same types. There the
    # largest weight is 1 and not rounded; here it may be as any other.
    assert error.max() <= 2 * usual.max() + 1e-5
    assert (error**2).sum() <= 1.5 * (usual**2).sum() + 1e-12 * (exact**2).sum()
    return out


@SIZES
@LAYOUTS
@PRODUCTS
def test_queries_and_appended_keys_and_values_are_right_to_the_bit(
    head_dim: int, interleaved: bool, product: int
) -> None:
    check_append(Sequence(40, 6, 2, head_dim, interleaved, product), 0, 40)
    check_append(Sequence(50, 9, 3, head_dim, interleaved, product), 17, 32)


@SIZES
@LAYOUTS
def test_appended_bits_are_those_of_decode(head_dim: int, interleaved: bool) -> None:
    case = Decode([1, 16, 17, 40], 4, 2, head_dim, interleaved)
    pool = case.arrays["pool"]
    for token, length in enumerate(case.lengths):
        arrays = {
            "qkv": case.arrays["qkv"][token : token + 1],
            "cosines": case.arrays["cosines"],
            "sines": case.arrays["sines"],
            "pages": case.arrays["page_table"][token],
            "pool": pool,
        }
        scalars = Sequence(1, 4, 2, head_dim, interleaved).scalars(length - 1, 1)
        pool = PLAIN.run("rope_append", arrays, scalars)["pool"]
    np.testing.assert_array_equal(pool, case.run(PLAIN).pool)


@SIZES
@pytest.mark.parametrize(
    ("first", "tokens"),
    [(0, 1), (0, 16), (0, 33), (0, 65), (15, 1), (16, 17), (31, 33), (63, 2), (64, 64), (100, 30)],
)
def test_attention_at_edges_of_pages_steps_and_stages(
    head_dim: int, first: int, tokens: int
) -> None:
    check(Sequence(first + tokens, 4, 2, head_dim, seed=first), first, tokens)


@SIZES
@pytest.mark.parametrize("group", range(1, 10))
def test_groups_of_query_heads(head_dim: int, group: int) -> None:
    check(Sequence(70, 2 * group, 2, head_dim, seed=group), 40, 30)


@SIZES
def test_several_blocks_of_rows_and_a_long_context(head_dim: int) -> None:
    check(Sequence(150, 3, 1, head_dim), 0, 150)
    check(Sequence(700, 2, 1, head_dim), 640, 60)


@pytest.mark.parametrize("seed", range(6))
def test_random_chunks(seed: int) -> None:
    random = np.random.default_rng(seed)
    first, tokens = int(random.integers(0, 200)), int(random.integers(1, 80))
    kv_heads, group = int(random.integers(1, 3)), int(random.integers(1, 6))
    head_dim = int(random.choice([64, 128]))
    sequence = Sequence(first + tokens, kv_heads * group, kv_heads, head_dim, seed=seed)
    check(sequence, first, tokens)


@SIZES
def test_scores_far_apart_and_close_together(head_dim: int) -> None:
    check(Sequence(90, 4, 2, head_dim, scale=30.0), 10, 80)
    check(Sequence(90, 4, 2, head_dim, scale=1e-3), 10, 80)


@cache
def whole(head_dim: int) -> tuple[Sequence, Array]:
    sequence = Sequence(150, 6, 2, head_dim, seed=5)
    return sequence, check(sequence, 0, 150)


@SIZES
@pytest.mark.parametrize("borders", [[1, 2, 64], [16, 100], [31, 33, 97, 149]], ids=str)
def test_a_query_has_the_same_bits_in_any_chunk(head_dim: int, borders: list[int]) -> None:
    sequence, out = whole(head_dim)
    for first, end in zip([0, *borders], [*borders, 150], strict=True):
        got = sequence.attend(PLAIN, first, end - first)
        np.testing.assert_array_equal(got, out[first:end])


@SIZES
def test_other_pages_change_no_bit(head_dim: int) -> None:
    sequence, out = whole(head_dim)
    moved = Sequence(150, 6, 2, head_dim, seed=5, spare_pages=11)
    assert not np.array_equal(moved.pages, sequence.pages)
    np.testing.assert_array_equal(moved.attend(PLAIN, 0, 150), out)


@SIZES
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("copies", COPIES)
def test_any_order_of_threads_and_moment_of_copies_gives_the_same_bits(
    head_dim: int, order: Order, copies: Copies
) -> None:
    sequence, out = whole(head_dim)
    got = sequence.attend(PLAIN, 60, 90, order=order, copies=copies, seed=3)
    np.testing.assert_array_equal(got, out[60:])
    appended = sequence.append(PLAIN, 60, 90, order=order, seed=3)
    np.testing.assert_array_equal(appended["pool"], sequence.pool(150))


@SIZES
def test_decode_goes_on_behind_a_prefilled_chunk(head_dim: int) -> None:
    """The pool that prefill leaves is what decode expects: its answer for the next token fits."""
    sequence = Sequence(35, 4, 2, head_dim)
    case = Decode([35], 4, 2, head_dim, spare_pages=0)
    pool = sequence.append(PLAIN, 0, 34)["pool"]
    table = sequence.chunk(0, 35)["pages"][None]
    arrays = case.arrays | {"pool": pool, "page_table": table, **sequence.tables}
    arrays["qkv"] = sequence.products(34, 1)
    got = PLAIN.run("attention", arrays, case.scalars())
    np.testing.assert_array_equal(got["pool"], sequence.pool(35))
    exact, _ = sequence.attended(34, 1)
    # Prefill's reference rounds q to bf16, which decode does not.
    np.testing.assert_allclose(from_bfloat16(got["out"]), exact, atol=0.02)


def test_an_empty_chunk_is_no_launch() -> None:
    sequence = Sequence(20, 4, 2, 64)
    assert sequence.attend(PLAIN, 16, 0).shape == (0, 4, 64)
    np.testing.assert_array_equal(sequence.append(PLAIN, 16, 0)["pool"], sequence.pool(16))


@pytest.mark.parametrize(
    "scalars",
    [
        *({"head_dim": 96}, {"heads": 5}, {"heads": 0}, {"kv_heads": 0}, {"first_position": -1}),
        {"row_tiles": 3},
    ],
    ids=str,
)
def test_shapes_that_the_kernels_have_no_code_for_are_refused(scalars: dict[str, int]) -> None:
    with pytest.raises(Fault, match="launcher returned error 1"):
        Sequence(5, 4, 2, 64).attend(PLAIN, 0, 5, scalars)


@pytest.mark.parametrize("flavour", ["asan", "tsan"])
@pytest.mark.parametrize(
    ("head_dim", "row_tiles", "order", "copies"),
    [(64, 2, "up", "lazy"), (128, 1, "random", "eager"), (128, 2, "down", "lazy")],
)
def test_sanitizers_find_nothing(
    flavour: Flavour, head_dim: int, row_tiles: int, order: Order, copies: Copies
) -> None:
    sequence = Sequence(3 * PAGE + 90, 2, 1, head_dim)
    emulated = Emulated(flavour)
    scalars = {"row_tiles": row_tiles}
    out = sequence.attend(emulated, 3 * PAGE, 90, scalars, order=order, copies=copies)
    exact, margin = sequence.attended(3 * PAGE, 90)
    assert (abs(from_bfloat16(out) - exact) <= margin).all()
    appended = sequence.append(emulated, 3 * PAGE, 5, order=order)
    np.testing.assert_array_equal(appended["pool"], sequence.pool(3 * PAGE + 5))
