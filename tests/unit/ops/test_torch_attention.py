"""The attention ops of torch beside float64; CUDA's half on the emulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from servewright_runtime import native
from servewright_runtime.ops import torch_ops
from servewright_runtime.ops.torch_ops import attention_reference as reference
from servewright_runtime.ops.torch_ops.pages import PAGE
from support.decode_attention import NO_PAGE, Decode
from support.emulated import Emulated
from support.emulated_module import emulated_module
from support.prefill_chunks import Sequence

torch_ops.register()
OPS = torch.ops.servewright
PLAIN = Emulated()
LAYOUTS = pytest.mark.parametrize("interleaved", [True, False], ids=["adjacent", "halves"])
AT_EDGES = [0, 1, 2, 15, 16, 17, 255, 256, 257, 600]


def tables(positions: int, dim: int) -> tuple[Tensor, Tensor]:
    angles = torch.arange(positions)[:, None] * 10000.0 ** (-torch.arange(0, dim, 2) / dim)
    return angles.cos(), angles.sin()


@dataclass
class Case:
    """Arguments of paged_attention; what nothing may read is NaN or out of range."""

    qkv: Tensor
    pool: Tensor
    page_table: Tensor
    lengths: Tensor
    cosines: Tensor
    sines: Tensor
    heads: int
    interleaved: bool = True

    def args(self) -> tuple[Any, ...]:
        return tuple(vars(self).values())

    def copy(self) -> Case:
        return replace(self, pool=self.pool.clone())


def case(
    lengths: list[int], heads: int = 6, kv_heads: int = 2, dim: int = 64, interleaved: bool = True
) -> Case:
    random = np.random.default_rng((len(lengths), heads, dim))
    needed = [-(-length // PAGE) for length in lengths]
    numbers = torch.from_numpy(random.permutation(sum(needed) + 3).astype(np.int32))
    pool = torch_ops.kv_pool(len(numbers), kv_heads, dim).fill_(torch.nan)
    table = torch.full((len(lengths), max([*needed, 1])), NO_PAGE, dtype=torch.int32)
    taken = 0
    for token, length in enumerate(lengths):
        table[token, : needed[token]] = numbers[taken : taken + needed[token]]
        taken += needed[token]
        before = torch.arange(max(length - 1, 0))
        k, v = torch.from_numpy(random.normal(size=(2, len(before), kv_heads, dim)))
        reference.append(k, v, pool, table[token], before)
    qkv = random.normal(size=(len(lengths), (heads + 2 * kv_heads) * dim)).astype(np.float32)
    return Case(
        torch.from_numpy(qkv),
        pool,
        table,
        torch.tensor(lengths, dtype=torch.int32),
        *tables(max([*lengths, 1]), dim),
        heads,
        interleaved,
    )


def bits(tensor: Tensor) -> Any:
    return tensor.view(torch.int16).numpy()


def close_pools(got: Tensor, wanted: Tensor) -> None:
    """Equal but for a rounding to float16 that falls the other way; NaN where NaN was."""
    torch.testing.assert_close(got, wanted, rtol=2**-10, atol=2**-20, equal_nan=True)


def check(c: Case) -> Tensor:
    """The op beside the reference in float64, on the pool that the op leaves."""
    given, exact_pool = c.copy(), c.pool.clone()
    got: Tensor = OPS.paged_attention(*given.args())
    wide = replace(c, qkv=c.qkv.double(), pool=exact_pool)
    exact = reference.paged_attention(*wide.args())
    close_pools(given.pool, exact_pool)
    # K rounded the other way moves a score by 2^-11 of a part of it.
    torch.testing.assert_close(got.double(), exact, rtol=1e-3, atol=1e-3)
    for token, length in enumerate(c.lengths.tolist()):
        if length == 0:
            assert not got[token].any()
            continue
        at = torch.tensor([length - 1])
        q = wide.qkv[token, : c.heads * 2 * c.cosines.shape[1]].view(1, c.heads, -1)
        angles = c.cosines[at, None].double(), c.sines[at, None].double()
        q = reference.rotated(q, *angles, c.interleaved)
        same = reference.attended(q, given.pool, c.page_table[token], at)[0]
        # csrc/cpu/attention.h; the magnitudes of V are below 5.
        splits = -(-length // 256)
        bound = (q.shape[2] + 256 + 4 * splits) * 2**-24 * 5
        assert (got[token] - same).abs().max() <= bound
    return got


@LAYOUTS
@pytest.mark.parametrize("dim", [16, 64, 80, 128, 256])
def test_decode_gives_what_float64_gives_at_every_edge(dim: int, interleaved: bool) -> None:
    check(case(AT_EDGES, 4, 2, dim, interleaved))


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (9, 3), (14, 2), (5, 1)])
def test_groups_of_query_heads(heads: int, kv_heads: int) -> None:
    check(case([40, 0, 300], heads, kv_heads))


def test_all_variants_have_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    for variant in native.variants():
        monkeypatch.setenv("SERVEWRIGHT_CPU", variant)
        check(case([0, 17, 300], 6, 2, 64, interleaved=False))


def test_an_empty_batch_and_a_batch_of_empty_slots_touch_nothing() -> None:
    c = case([0, 0])
    before = c.pool.clone()
    assert not OPS.paged_attention(*c.args()).any()
    none = replace(c, qkv=c.qkv[:0], page_table=c.page_table[:0], lengths=c.lengths[:0])
    assert OPS.paged_attention(*none.args()).shape == (0, 6 * 64)
    np.testing.assert_array_equal(bits(c.pool), bits(before))


def chunks(borders: list[int], interleaved: bool = True) -> tuple[Tensor, Tensor]:
    """(out, pool) of one sequence of 300 positions, prefilled between these borders."""
    c = case([300], interleaved=interleaved)
    pool = torch_ops.kv_pool(len(c.pool), 2, 64).fill_(torch.nan)
    qkv = torch.from_numpy(np.random.default_rng(7).normal(size=(300, 640)).astype(np.float32))
    parts = [
        OPS.prefill_attention(
            qkv[first:end], pool, c.page_table[0], first, c.cosines, c.sines, 6, interleaved
        )
        for first, end in zip([0, *borders], [*borders, 300], strict=True)
    ]
    exact_pool = torch_ops.kv_pool(len(c.pool), 2, 64).fill_(torch.nan)
    exact = reference.prefill_attention(
        qkv.double(), exact_pool, c.page_table[0], 0, c.cosines, c.sines, 6, interleaved
    )
    close_pools(pool, exact_pool)
    torch.testing.assert_close(torch.cat(parts).double(), exact, rtol=1e-3, atol=1e-3)
    return torch.cat(parts), pool


@LAYOUTS
def test_prefill_has_the_same_bits_in_any_chunks_and_in_decode(interleaved: bool) -> None:
    whole, pool = chunks([], interleaved)
    for borders in ([1, 2, 64], [16, 256, 299], [100, 100]):
        got, same_pool = chunks(borders, interleaved)
        assert torch.equal(got, whole)
        np.testing.assert_array_equal(bits(same_pool), bits(pool))
    c = case([300], interleaved=interleaved)
    qkv = torch.from_numpy(np.random.default_rng(7).normal(size=(300, 640)).astype(np.float32))
    last = replace(c, qkv=qkv[299:], pool=pool)
    assert torch.equal(OPS.paged_attention(*last.args())[0], whole[299])


def test_torchs_own_checks_pass() -> None:
    c = case([17, 0, 40])
    torch.library.opcheck(OPS.paged_attention.default, c.args())
    args = (c.qkv, c.pool, c.page_table[2], 20, c.cosines, c.sines, 6)
    torch.library.opcheck(OPS.prefill_attention.default, args)


@pytest.mark.filterwarnings("ignore")  # torch's own compiler warns of what it finds
@pytest.mark.timeout(600)
def test_a_compiled_layer_takes_the_ops_whole_and_writes_the_same_pool() -> None:
    def layer(qkv: Tensor, pools: Tensor, c: Case, first: int) -> Tensor:
        # A layer's part of a larger tensor, as a model has it.
        table = c.page_table[0]
        prompt = OPS.prefill_attention(qkv, pools[1], table, first, c.cosines, c.sines, 6)
        token = OPS.paged_attention(
            qkv[:1] * 2, pools[1], c.page_table[:1], c.lengths[:1], c.cosines, c.sines, 6
        )
        return torch.cat([prompt, token + 1])

    compiled = torch.compile(layer, fullgraph=True)
    c = case([60])
    qkv = torch.cat([c.qkv, c.qkv + 1, c.qkv - 1])
    with torch.no_grad():
        for first in (0, 3, 7):
            pools = (
                torch.zeros(2, *c.pool.shape, dtype=torch.float16),
                torch.zeros(2, *c.pool.shape, dtype=torch.float16),
            )
            wanted = layer(qkv, pools[0], c, first)
            torch.testing.assert_close(compiled(qkv, pools[1], c, first), wanted)
            torch.testing.assert_close(pools[1], pools[0])
            assert pools[1][1].any()
            assert not pools[1][0].any()


def test_fakes_of_either_layout_have_the_shape() -> None:
    c = case([17, 40])
    on_meta = [arg.to("meta") if isinstance(arg, Tensor) else arg for arg in c.args()]
    assert OPS.paged_attention(*on_meta).shape == (2, 6 * 64)
    on_meta[1] = torch_ops.kv_pool(9, 2, 64, "meta")
    assert on_meta[1].dtype == torch.bfloat16
    assert OPS.paged_attention(*on_meta).dtype == torch.float32


def test_keys_and_values_are_views_of_either_layout() -> None:
    for device, dtype in (("cpu", torch.float16), ("meta", torch.bfloat16)):
        pool = torch_ops.kv_pool(5, 2, 64, device)
        assert pool.dtype == dtype
        for part in torch_ops.keys_and_values(pool):
            assert part.shape == (5, 2, 16, 64)
            assert part._base is pool


def _with(**changed: Any) -> Callable[[Case], Any]:
    return lambda c: OPS.paged_attention(*replace(c, **changed).args())


def _put(name: str, value: int, *at: int) -> Callable[[Case], Any]:
    def call(c: Case) -> Any:
        changed = getattr(c, name).clone()
        changed[at] = value
        return OPS.paged_attention(*replace(c, **{name: changed}).args())

    return call


def _prefill(**changed: Any) -> Callable[[Case], Any]:
    def call(c: Case) -> Any:
        args = {
            "qkv": c.qkv, "pool": c.pool, "pages": c.page_table[2], "first_position": 20,
            "cosines": c.cosines, "sines": c.sines, "heads": 6,
        }  # fmt: skip
        return OPS.prefill_attention(**args | changed)

    return call


INT32 = torch.int32


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (_put("page_table", 99, 2, 1), r"page_table\[7\] must be in 0\.\.7, got 99"),
        (_put("page_table", -1, 0, 0), r"page_table\[0\] must be in 0\.\.7, got -1"),
        (_put("lengths", 49, 2), r"lengths\[2\] must be 0 or in 1\.\.40 .* got 49"),
        (_put("lengths", -1, 0), r"lengths\[0\] must be 0 or in 1\.\.40 .* got -1"),
        (lambda c: _put("page_table", int(c.page_table[0, 1]), 2, 2)(c), "that nothing else in"),
        (lambda c: _put("page_table", int(c.page_table[0, 1]), 2, 0)(c), "that nothing in the"),
        (_with(heads=5), "heads must be a multiple of the pool's 2, got 5"),
        (_with(heads=0), "heads must be a multiple of the pool's 2, got 0"),
        (_with(heads=4), r"qkv must be \[tokens, 512\], got \[3, 640\]"),
        (lambda c: _with(qkv=c.qkv.double())(c), "qkv must be float32, got float64"),
        (lambda c: _with(pool=c.pool.float())(c), "pool must be float16, got float32"),
        (lambda c: _with(pool=c.pool[:, :1])(c), "pool must be contiguous"),
        (lambda c: _with(pool=c.pool[..., :7])(c), "pool must be as torch_ops.kv_pool.. makes"),
        (lambda c: _with(pool=c.pool[:0])(c), "pool must be as torch_ops.kv_pool.. makes"),
        (lambda c: _with(lengths=c.lengths.long())(c), "lengths must be int32, got int64"),
        (lambda c: _with(lengths=c.lengths[:2])(c), r"lengths must be \[3\], got \[2\]"),
        (lambda c: _with(page_table=c.page_table[:2])(c), r"page_table must be \[3, pages\]"),
        (lambda c: _with(sines=c.sines[:5])(c), r"sines must be \[40, 32\], got \[5, 32\]"),
        (lambda c: _with(cosines=c.cosines[:, :5])(c), r"cosines must be \[positions, 32\]"),
        (lambda c: _with(page_table=c.page_table.to("meta"))(c), "as qkv does, got meta"),
        (_prefill(first_position=-1), "first_position must be at least 0, got -1"),
        (_prefill(first_position=46), "pages must hold 49 positions, 16 each, got 3"),
        (_prefill(first_position=38), "cosines must have 41 positions, got 40"),
        (_prefill(pages=torch.full((3,), 8, dtype=INT32)), r"page_table\[0\] must be in 0\.\.7"),
        (_prefill(pages=torch.tensor([1, 1, 2], dtype=INT32)), "a block that nothing in the step"),
        (_prefill(pages=torch.zeros(3)), "pages must be int32, got float32"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_write(
    call: Callable[[Case], Any], told: str
) -> None:
    c = case([17, 0, 40])
    before = c.pool.clone()
    with pytest.raises(ValueError, match=told):
        call(c)
    np.testing.assert_array_equal(bits(c.pool), bits(before))


def test_gradients_are_refused_with_the_cure() -> None:
    c = case([17])
    c.qkv.requires_grad_()
    with pytest.raises(NotImplementedError, match="paged_attention has no backward pass; call it"):
        OPS.paged_attention(*c.args())
    with torch.no_grad():
        OPS.paged_attention(*c.args())


# ---- CUDA's half, on the emulator: to the bit what the driver of its own tests gives. ----


def half(array: Any) -> Tensor:
    """numpy's uint16 as bf16, in memory of its own."""
    return torch.from_numpy(array.copy()).view(torch.bfloat16)


def named(arrays: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: torch.from_numpy(arrays[name]) for name in names}


@LAYOUTS
@pytest.mark.parametrize("dim", [64, 128])
def test_decode_of_cuda_has_the_bits_of_its_kernel(dim: int, interleaved: bool) -> None:
    made = Decode([0, 1, 16, 17, 300], 6, 2, dim, interleaved)
    ran, pool = made.run(PLAIN), half(made.arrays["pool"])
    given = named(made.arrays, "qkv", "page_table", "lengths", "cosines", "sines")
    call = torch_ops.PagedAttention(pool=pool, heads=6, interleaved=interleaved, **given)
    got = call.on_cuda(emulated_module(), 0)
    assert torch.equal(got, half(ran.out).float().flatten(1))
    np.testing.assert_array_equal(pool.view(torch.uint16).numpy(), ran.pool)


def test_a_large_batch_of_cuda_is_several_launches() -> None:
    made = Decode([5] * 64, 2, 1, 64)
    given = named(made.arrays, "qkv", "page_table", "lengths", "cosines", "sines")
    one = torch_ops.PagedAttention(pool=half(made.arrays["pool"]), heads=2, **given)
    wanted = one.on_cuda(emulated_module(), 0)
    twice = {name: torch.cat([given[name]] * 2) for name in ("qkv", "page_table", "lengths")}
    both = torch_ops.PagedAttention(pool=half(made.arrays["pool"]), heads=2, **given | twice)
    assert torch.equal(both.on_cuda(emulated_module(), 0), torch.cat([wanted, wanted]))


@LAYOUTS
def test_prefill_of_cuda_has_the_bits_of_its_kernels(interleaved: bool) -> None:
    sequence = Sequence(50, 6, 2, 64, interleaved)
    pool = half(sequence.pool(17))
    call = torch_ops.PrefillAttention(
        qkv=torch.from_numpy(sequence.products(17, 33)),
        pool=pool,
        pages=torch.from_numpy(sequence.pages),
        first_position=17,
        heads=6,
        interleaved=interleaved,
        **named(sequence.tables, "cosines", "sines"),
    )
    got = call.on_cuda(emulated_module(), 0)
    assert torch.equal(got, half(sequence.attend(PLAIN, 17, 33)).float().flatten(1))
    np.testing.assert_array_equal(pool.view(torch.uint16).numpy(), sequence.pool(50))
    empty = replace(call, qkv=call.qkv[:0]).on_cuda(emulated_module(), 0)
    assert empty.shape == (0, 6 * 64)


def test_heads_that_cuda_has_no_code_for_are_refused() -> None:
    pool = torch_ops.kv_pool(4, 2, 64, "meta")
    table, lengths = torch.zeros(1, 4, dtype=INT32), torch.zeros(1, dtype=INT32)
    args = [torch.zeros(1, 22 * 64), pool, table, lengths, *tables(9, 64), 18]
    on_meta = [arg.to("meta") if isinstance(arg, Tensor) else arg for arg in args]
    with pytest.raises(ValueError, match="heads must be at most 8 a KV head on CUDA, got 18"):
        OPS.paged_attention(*on_meta)
