"""What the bindings of the CUDA half refuse: one sentence, before any write.

Every array of every op is spoiled in every way that DLPack can carry, one at a time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.emulated import Array
from support.emulated_module import emulated_module
from support.native_model import SMALL, make_model
from support.steps import Piece, make_batch

CONFIG = replace(
    SMALL, hidden_size=64, layers=2, heads=2, kv_heads=1, head_dim=64, rope_dims=64, ffn_size=64
)
TOKENS, ROWS, COLS, VOCAB = 3, 32, 64, 77


def floats(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


def sampling_arrays(rows: int = TOKENS) -> dict[str, Array]:
    batch = make_batch([Piece([0] * rows, 0, [0])]).sampling
    names = (*(name for name in batch.__slots__),)
    arrays = {name: np.array(getattr(batch, name)) for name in names}
    results = {"token_ids": np.int32, "finite": np.int32, "token_logprobs": np.float32}
    arrays |= {name: np.zeros(rows, type_) for name, type_ in results.items()}
    return arrays | {"top_ids": np.zeros((rows, 2), np.int32), "top_values": floats(rows, 2)}


def attention_arrays(cuda: Any) -> dict[str, Array]:
    """Of 2 heads a KV head of 64, empty slots."""
    int32 = np.int32
    return {
        "qkv": floats(TOKENS, 4 * 64),
        "cosines": floats(20, 32),
        "sines": floats(20, 32),
        "pool": np.zeros((3, 2, 1, 16, 64), np.uint16),
        "page_table": np.zeros((TOKENS, 2), int32),
        "lengths": np.zeros(TOKENS, int32),
        "tickets": np.zeros(TOKENS, int32),
        "partials": np.zeros(cuda.attention_workspace(2, 1, 64, 20, TOKENS), np.uint8),
        "out": np.zeros((TOKENS, 2, 64), np.uint16),
    }


SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "seed", "draw", "presence", "frequency",
    "repetition", "history_ids", "history_starts", "history_prompts", "bias_ids", "bias_values",
    "bias_starts", "logprobs", "top_logprobs", "token_ids", "finite", "token_logprobs", "top_ids",
    "top_values",
)  # fmt: skip
NAMES = {
    "Matrix": ("data",),
    "Sampling": SAMPLING,
    "embed": ("token_ids", "out"),
    "project_normed": ("x", "norm", "out"),
    "project_residual": ("inp", "x"),
    "gate_up": ("x", "norm", "out"),
    "attention": (
        "qkv", "cosines", "sines", "pool", "page_table", "lengths", "tickets", "partials", "out",
    ),
    "sample": ("logits", "workspace"),
    "dequantise": ("out",),
    "rope_append": ("qkv", "cosines", "sines", "pool", "pages", "q_rotated"),
    "prefill_attention": ("q_rotated", "pool", "pages", "out"),
    "residual_norm": ("x", "delta", "weight", "out"),
    "silu_mul": ("inp", "out"),
}  # fmt: skip
ARRAYS = [(op, name) for op, names in NAMES.items() for name in names]


@cache
def ops() -> dict[str, tuple[Callable[..., Any], dict[str, Array]]]:
    """Each op as a function of its arrays by name, and good ones."""
    cuda = emulated_module()
    packed = np.zeros(cuda.packed_bytes("Q4_0", ROWS, COLS), np.uint8)
    matrix = cuda.Matrix("Q4_0", ROWS, COLS, packed)
    halves = np.zeros((TOKENS, COLS), np.uint16)
    samples = sampling_arrays()
    workspace = np.zeros(cuda.sampling_workspace(VOCAB, TOKENS), np.uint8)
    queries, pool = np.zeros((TOKENS, 2, 64), np.uint16), np.zeros((2, 2, 1, 16, 64), np.uint16)
    table, pages = floats(TOKENS, 32), np.zeros(1, np.int32)
    chunk: dict[str, Array] = {"pool": pool, "pages": pages, "q_rotated": queries}
    return {
        "Matrix": (lambda data: cuda.Matrix("Q4_0", ROWS, COLS, data), {"data": packed}),
        "Sampling": (lambda **arrays: cuda.Sampling(arrays), samples),
        "embed": (
            lambda token_ids, out: cuda.embed(matrix, token_ids, out, 0),
            {"token_ids": np.zeros(TOKENS, np.int32), "out": floats(TOKENS, COLS)},
        ),
        "project_normed": (
            lambda x, norm, out: cuda.project_normed(matrix, x, norm, 1e-5, out, 0),
            {"x": floats(TOKENS, COLS), "norm": floats(COLS), "out": floats(TOKENS, ROWS)},
        ),
        "project_residual": (
            lambda inp, x: cuda.project_residual(matrix, inp, x, 0),
            {"inp": halves, "x": floats(TOKENS, ROWS)},
        ),
        "gate_up": (
            lambda x, norm, out: cuda.gate_up(matrix, matrix, x, norm, 1e-5, out, 0),
            {"x": floats(TOKENS, COLS), "norm": floats(COLS), "out": halves[:, :ROWS].copy()},
        ),
        "attention": (
            lambda **arrays: cuda.attention(**arrays, max_length=20, interleaved=True, stream=0),
            attention_arrays(cuda),
        ),
        "sample": (
            lambda logits, workspace: cuda.sample(
                logits, VOCAB, cuda.Sampling(samples), workspace, 0
            ),
            {"logits": floats(TOKENS, VOCAB + 3), "workspace": workspace},
        ),
        "dequantise": (
            lambda out: cuda.dequantise(matrix, out, 0),
            {"out": np.zeros((ROWS, COLS), np.uint16)},
        ),
        "rope_append": (
            lambda qkv, cosines, sines, pool, pages, q_rotated: cuda.rope_append(
                qkv, cosines, sines, pool, pages, 0, q_rotated, True, 0
            ),
            {"qkv": floats(TOKENS, 256), "cosines": table, "sines": table} | chunk,
        ),
        "prefill_attention": (
            lambda q_rotated, pool, pages, out: cuda.prefill_attention(
                q_rotated, pool, pages, 0, out, 0
            ),
            chunk | {"out": np.zeros((TOKENS, 128), np.uint16)},
        ),
        "residual_norm": (
            lambda x, delta, weight, out: cuda.residual_norm(x, delta, weight, 1e-5, out, 0),
            {"x": floats(TOKENS, COLS), "delta": halves, "weight": floats(COLS), "out": halves},
        ),
        "silu_mul": (
            lambda inp, out: cuda.silu_mul(inp, out, 0),
            {"inp": floats(TOKENS, 2 * COLS), "out": halves},
        ),
    }


@pytest.fixture(scope="module")
def cuda() -> Any:
    return emulated_module()


class Elsewhere:
    """A tensor that says it lies on a CUDA device, and is none."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, **how: Any) -> Any:
        raise AssertionError("asked for memory that is elsewhere")


class Refusing:
    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, **how: Any) -> Any:
        raise BufferError("not today")


def misaligned(array: Array) -> Array:
    """The same, one byte beyond an aligned address."""
    raw = np.zeros(array.nbytes + 17, np.uint8)
    at = 1 + (-raw.ctypes.data) % 16
    return raw[at : at + array.nbytes].view(array.dtype).reshape(array.shape)


def strided(array: Array) -> Array:
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    return wide[..., ::2]


SPOILERS: dict[str, Callable[[Array], Any]] = {
    "no tensor": lambda a: a.tolist(),
    "none": lambda a: None,
    "float64": lambda a: np.zeros(a.shape, np.float64),
    "int16": lambda a: np.zeros(a.shape, np.int16),
    "complex": lambda a: np.zeros(a.shape, np.complex64),
    "bool": lambda a: np.zeros(a.shape, np.bool_),
    "rank": lambda a: a[None],
    "scalar": lambda a: np.zeros((), a.dtype),
    "elsewhere": lambda a: Elsewhere(),
    "refusing": lambda a: Refusing(),
    "needs a gradient": lambda a: torch.zeros(a.shape, requires_grad=True),
    "misaligned": misaligned,
    "strided": strided,
    "read-only": lambda a: _read_only(a),
}


def _read_only(array: Array) -> Array:
    same = array.copy()
    same.flags.writeable = False
    return same


# What is empty lies nowhere, and bytes may lie anywhere.
HARMLESS = {
    *((name, spoiler) for name in ("history_ids", "bias_ids", "bias_values")
      for spoiler in ("misaligned", "strided")),
    ("logprobs", "misaligned"), ("pages", "strided"),  # a single one
}  # fmt: skip
OPTIONAL = {("residual_norm", "delta"), ("residual_norm", "out")}


@pytest.mark.parametrize(
    ("op", "name", "spoiler"),
    [
        (*which, how)
        for how in SPOILERS
        for which in ARRAYS
        if (which[1], how) not in HARMLESS and not (how == "none" and which in OPTIONAL)
    ],
)
def test_a_spoiled_array_is_refused_by_name(op: str, name: str, spoiler: str) -> None:
    call, arrays = ops()[op]
    with pytest.raises(ValueError, match=rf"^{op}: {name} [^\n]+$"):
        call(**arrays | {name: SPOILERS[spoiler](arrays[name])})


@pytest.mark.fuzz
@settings(deadline=None, max_examples=200)
@given(which=st.sampled_from(ARRAYS), data=st.data())
def test_an_array_of_another_size_is_refused_before_any_write(
    which: tuple[str, str], data: st.DataObject
) -> None:
    op, name = which
    call, arrays = ops()[op]
    shape = list(arrays[name].shape)
    axis = data.draw(st.integers(0, len(shape) - 1))
    shape[axis] = data.draw(st.integers(0, shape[axis] + 4))
    spoiled = {key: np.full_like(value, 0x55) for key, value in arrays.items()}
    spoiled[name] = np.full(shape, 0x55, arrays[name].dtype)
    before = {key: value.tobytes() for key, value in spoiled.items()}
    free = {("embed", "token_ids"), ("sample", "workspace"), ("Sampling", "history_ids")}
    free |= {
        (op, name) for op in ("rope_append", "prefill_attention") for name in ("pool", "pages")
    }
    free |= {("rope_append", "cosines"), ("rope_append", "sines")}
    free |= {("attention", name) for name in ("cosines", "sines", "pool", "page_table")}
    free |= {("attention", name) for name in ("tickets", "partials")}
    if shape == list(arrays[name].shape) or which in free or op in ("sample", "project_normed"):
        return  # may be right, and an op would then run on numbers that mean nothing
    with pytest.raises(ValueError, match=rf"^{op}: \w+ must [^\n]+$"):
        call(**spoiled)
    assert {key: value.tobytes() for key, value in spoiled.items()} == before


def capsule(shape: tuple[int, ...], strides: tuple[int, ...] | None, data: Array) -> Any:
    """A DLPack capsule of uint8 that claims any shape; its memory is `data`."""
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    steps = (ctypes.c_int64 * len(shape))(*strides) if strides else None
    managed = Managed()
    managed.data, managed.device_type, managed.device_id = data.ctypes.data, 1, 0
    managed.ndim, managed.code, managed.bits, managed.lanes = len(shape), 1, 8, 1
    managed.shape = ctypes.cast(sizes, ctypes.c_void_p)
    managed.strides = ctypes.cast(steps, ctypes.c_void_p) if steps else None
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p] * 3
    LIVE.append((managed, sizes, steps, data))
    return make(ctypes.addressof(managed), ctypes.cast(DLTENSOR, ctypes.c_void_p), None)


class Managed(ctypes.Structure):
    """DLManagedTensor without a deleter."""

    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64), ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]  # fmt: skip


DLTENSOR = ctypes.c_char_p(b"dltensor")
LIVE: list[Any] = []  # what capsules point to


class Claims:
    def __init__(self, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
        self.made = capsule(shape, strides, np.zeros(16, np.uint8))

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, **how: Any) -> Any:
        return self.made


@pytest.mark.parametrize("size", [-1, 2**47 + 1, 2**63 - 1])
def test_a_size_that_no_memory_has_is_refused(cuda: Any, size: int) -> None:
    logits = floats(TOKENS, VOCAB + 3)
    with pytest.raises(ValueError, match=r"^sample: workspace must [^\n]+$"):
        cuda.sample(logits, VOCAB, cuda.Sampling(sampling_arrays()), Claims((size,), None), 0)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ((9, 1, 64, 20, 3), "heads must be 1 to 8 for each KV head, got 9"),
        ((3, 2, 64, 20, 3), "heads must be 1 to 8 for each KV head, got 3"),
        ((2, 0, 64, 20, 3), r"kv_heads must be in 1\.\.65536, got 0"),
        ((2, 1, 96, 20, 3), "head_dim must be 64 or 128, got 96"),
        ((2, 1, 64, 0, 3), r"max_length must be in 1\.\.2\^24, got 0"),
        ((2, 1, 64, 20, 65), r"tokens must be in 0\.\.64, got 65"),
    ],
)
def test_attention_that_no_kernel_computes_is_refused(
    cuda: Any, sizes: tuple[int, ...], told: str
) -> None:
    with pytest.raises(ValueError, match=f"^attention_workspace: {told}$"):
        cuda.attention_workspace(*sizes)
    heads, kv_heads, dim, max_length, tokens = sizes
    arrays = attention_arrays(cuda)
    arrays["out"] = np.zeros((tokens, heads, dim), np.uint16)
    arrays["pool"] = np.zeros((3, 2, kv_heads, 16, dim), np.uint16)
    with pytest.raises(ValueError, match=f"^attention: {told}$"):
        cuda.attention(**arrays, max_length=max_length, interleaved=True, stream=0)


def test_a_step_says_what_it_lacks(cuda: Any) -> None:
    model = make_model(CONFIG, "Q4_0")
    total, _ = cuda.layout(CONFIG, model.types)
    weights, tables = np.zeros(total, np.uint8), floats(32, 32)
    loaded = cuda.Model(CONFIG, model.types, weights, tables, tables)
    step = loaded.plan(2, 32, 4)
    with pytest.raises(ValueError, match="launch: bind says first"):
        step.launch(0)
    good = {
        "pool": np.zeros(step.pool_shape, np.uint16),
        "workspace": np.zeros(step.workspace_bytes, np.uint8),
        "token_ids": np.zeros(2, np.int32),
        "lengths": np.zeros(2, np.int32),
        "page_table": np.zeros((2, 2), np.int32),
    }
    for name, array in good.items():
        short = array[:-1]
        with pytest.raises(ValueError, match=rf"^bind: {name} must [^\n]+$"):
            step.bind(**good | {name: short}, sampling=cuda.Sampling(sampling_arrays(2)))
    with pytest.raises(ValueError, match="sampling must have 2 rows, got 3"):
        step.bind(**good, sampling=cuda.Sampling(sampling_arrays(3)))
    for arguments, name in (
        ((0, 32, 4), "slots"),
        ((65, 32, 4), "slots"),
        ((2, 33, 4), "max_length"),
        ((2, 0, 4), "max_length"),
        ((2, 32, 0), "pages"),
    ):
        with pytest.raises(ValueError, match=f"^plan: {name} must be in 1"):
            loaded.plan(*arguments)
    with pytest.raises(ValueError, match=r"the model has no matrix blk\.2\.attn_q\.weight"):
        loaded.matrix("blk.2.attn_q.weight")


def test_a_step_s_values_are_checked_as_the_cpu_does(cuda: Any) -> None:
    batch = make_batch([Piece([1, 2, 3], 0, [0])])
    cuda.check_step(batch, CONFIG, 1)
    bad = replace(batch, token_ids=np.array([1, VOCAB, 3], np.int32))
    with pytest.raises(ValueError, match=r"step: token_ids\[1\] must be in 0..76, got 77"):
        cuda.check_step(bad, CONFIG, 1)
