"""What of a model the CUDA half takes, and packing its weights: refusals, pieces, threads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from support.decode_steps import WEIGHTS
from support.emulated_module import emulated_module
from support.native_model import SMALL, make_model

CONFIG = replace(
    SMALL, hidden_size=64, layers=2, heads=2, kv_heads=1, head_dim=64, rope_dims=64, ffn_size=64
)


@pytest.fixture(scope="module")
def cuda() -> Any:
    return emulated_module()


def types(**changed: str | None) -> dict[str, str]:
    given_ = dict(make_model(CONFIG, "Q4_0").types)
    for name, type_ in changed.items():
        full = name.replace("__", ".") + ".weight"
        if type_ is None:
            del given_[full]
        else:
            given_[full] = type_
    return given_


@pytest.mark.parametrize(
    ("config", "changed", "why"),
    [
        (CONFIG, {}, ""),
        (CONFIG, {"blk__1__attn_v": "Q8_0"}, ""),
        (CONFIG, {"blk__1__ffn_down": "Q6_K"}, "tensor blk.1.ffn_down.weight has the type Q6_K"),
        (CONFIG, {"output_norm": "BF16"}, "output_norm.weight has the type BF16"),
        (CONFIG, {"blk__0__attn_k": None}, "the tensor blk.0.attn_k.weight is missing"),
        (CONFIG, {"blk__2__attn_k": "Q4_0"}, "has no tensor blk.2.attn_k.weight"),
        (CONFIG, {"blk__1__ffn_up": "Q8_0"}, "blk.1.ffn_gate.weight has the type Q4_0 and blk.1"),
        (replace(CONFIG, head_dim=32, heads=4, rope_dims=32), {}, "head_dim 64 or 128, got 32"),
        (replace(CONFIG, heads=9), {}, "at most 8 query heads for a KV head, got 9"),
        (replace(CONFIG, vocab_size=2**18 + 1), {}, "vocab_size of at most 262144"),
        (replace(CONFIG, hidden_size=100), {}, "hidden_size a multiple of 32, got 100"),
    ],
)
def test_an_unfit_model_is_refused_by_its_reason(
    cuda: Any, config: Any, changed: dict[str, str | None], why: str
) -> None:
    said = cuda.unfit(config, types(**changed))
    if not why:
        assert said == ""
        return
    assert why in said
    assert said.endswith(".")
    assert said.count(". ") == 0
    with pytest.raises(ValueError, match=r"^layout: "):
        cuda.layout(config, types(**changed))


def test_packing_refuses_what_does_not_fit(cuda: Any) -> None:
    rows, out = np.zeros((16, 36), np.uint8), np.zeros(cuda.packed_bytes("Q4_0", 16, 64), np.uint8)
    cuda.pack("Q4_0", 64, rows, out)
    read_only = out.copy()
    read_only.flags.writeable = False
    for arguments, why in (
        (("Q4_K", 64, rows, out), "tensor_type must be BF16, Q8_0, Q4_0 or Q4_1, got Q4_K"),
        (("Q4_0", 48, rows, out), "cols must be a multiple of 32"),
        (("Q4_0", 64, rows[:, :35].copy(), out), "rows must have 36 bytes each"),
        (("Q4_0", 64, rows[:, ::2], out), "not contiguous"),
        (("Q4_0", 64, rows, out[:-1]), f"out must have {len(out)} bytes"),
        (("Q4_0", 64, rows, read_only), "the array is read-only"),
        (("Q4_0", 64, rows, out, 0), "threads must be 1 or more"),
    ):
        with pytest.raises(ValueError, match=why):
            cuda.pack(*arguments)


@pytest.mark.parametrize("type_", WEIGHTS)
def test_packing_in_pieces_and_on_threads_gives_the_same_bytes(cuda: Any, type_: str) -> None:
    rows, cols = 3000, 1056
    size = cuda.row_bytes(type_, cols)
    source = np.random.default_rng(1).integers(0, 256, (rows, size), dtype=np.uint8)
    wanted = np.zeros(cuda.packed_bytes(type_, rows, cols), np.uint8)
    cuda.pack(type_, cols, source, wanted)
    shared = np.full_like(wanted, 0xFF)
    cuda.pack(type_, cols, source, shared, 5)
    np.testing.assert_array_equal(shared, wanted)
    pieces = np.full_like(wanted, 0xFF)
    for first in range(0, rows, 512):
        chunk = source[first : first + 512]
        at = cuda.packed_bytes(type_, first, cols)
        cuda.pack(type_, cols, chunk, pieces[at:][: cuda.packed_bytes(type_, len(chunk), cols)])
    np.testing.assert_array_equal(pieces, wanted)
