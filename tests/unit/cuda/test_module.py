"""The bindings of the CUDA half, on the emulator: the driver's bits, lifetimes, errors.

The numbers themselves are tested through the driver (test_step.py, test_gemm.py, ...): here it
suffices that the module leads to the same bits.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from servewright_runtime.models.runner import SamplingBatch
from support.decode_steps import PLAIN, WEIGHTS, Slot, decode
from support.emulated import Array, to_bfloat16
from support.emulated_module import emulated_module
from support.module_model import ModuleSteps, load_model
from support.native_model import SMALL, encode, make_model
from support.native_model import decode as dequantise
from support.steps import greedy

CONFIG = replace(
    SMALL, hidden_size=96, layers=2, heads=3, kv_heads=1, head_dim=64, rope_dims=64, ffn_size=96
)
MIXED = {
    "attn_q": "Q4_1", "attn_k": "Q4_1", "attn_v": "Q4_1", "attn_output": "Q4_0",
    "ffn_gate": "Q4_1", "ffn_up": "Q4_1", "ffn_down": "Q8_0", "output": "BF16",
    "token_embd": "Q8_0",
}  # fmt: skip
SEQUENCES = [np.arange(20) % 77, np.arange(60)[::-1] % 77]
STEPS: list[list[Slot]] = [[(0, 0), None, (1, 0)], [(0, 1), None, (1, 1)], [None, (1, 2), (0, 2)]]


@pytest.fixture(scope="module")
def cuda() -> Any:
    return emulated_module()


def sampled(step: int) -> SamplingBatch:
    random = np.random.default_rng(step)
    return replace(
        greedy(3),
        temperature=np.array([0, 0.7, 1.3], np.float32),
        top_k=np.array([0, 9, 0], np.int32),
        seed=random.integers(0, 2**64, 3, dtype=np.uint64),
        draw=random.integers(0, 2**32, 3, dtype=np.uint64),
        logprobs=np.ones(3, np.uint8),
        top_logprobs=np.full(3, 5, np.int32),
    )


def test_a_step_has_the_bits_of_the_driver() -> None:
    model = make_model(CONFIG, MIXED)
    for feeds_itself in (False, True):
        runs = [
            decode(
                CONFIG, model.types, model.tensors, SEQUENCES, STEPS,
                sampling=[sampled(step) for step in range(3)], feeds_itself=feeds_itself,
                emulated=runner,
            )
            for runner in (PLAIN, ModuleSteps(CONFIG, model.types, model.tensors))
        ]  # fmt: skip
        for wanted, got in zip(*(vars(run).values() for run in runs), strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_q_k_and_v_of_different_types_are_launches_of_their_own(cuda: Any) -> None:
    """Q4_0 weights are Q8_0 weights too, of the same value: the logits must be the same."""
    all_small = make_model(CONFIG, MIXED | dict.fromkeys(("attn_q", "attn_k", "attn_v"), "Q4_0"))
    wanted = decode(CONFIG, all_small.types, all_small.tensors, SEQUENCES, STEPS)
    widened = {
        name: _widened(rows) if name.endswith(("attn_v.weight", "0.attn_q.weight")) else rows
        for name, rows in all_small.tensors.items()
    }
    types = dict(all_small.types)
    for name, rows in widened.items():
        if rows is not all_small.tensors[name]:
            types[name] = "Q8_0"
            np.testing.assert_array_equal(
                dequantise(rows, "Q8_0"), dequantise(all_small.tensors[name], "Q4_0")
            )
    got = decode(
        CONFIG, types, widened, SEQUENCES, STEPS, emulated=ModuleSteps(CONFIG, types, widened)
    )
    assert got.launches[0] == 5 * CONFIG.layers + 3 + 2 + 1  # three in layer 0, two in layer 1
    used = [(step, at) for step, row in enumerate(STEPS) for at, slot in enumerate(row) if slot]
    for place in used:
        np.testing.assert_allclose(got.logits[place], wanted.logits[place], rtol=1e-5, atol=1e-5)


def _widened(rows: Array) -> Array:
    """Q4_0 rows as Q8_0 rows of the same value."""
    blocks = rows.reshape(len(rows), -1, 18)
    quants = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1)
    signed = quants.astype(np.int8) - 8
    both = np.concatenate([blocks[..., :2], signed.view(np.uint8)], axis=-1)
    return np.ascontiguousarray(both.reshape(len(rows), -1))


@pytest.mark.parametrize("type_", WEIGHTS)
def test_single_ops_have_the_bits_of_the_driver(cuda: Any, type_: str) -> None:
    random = np.random.default_rng(3)
    rows, cols, tokens, pad = 40, 96, 5, 3
    gguf = [encode(random.normal(size=(rows, cols)).astype(np.float32), type_) for _ in range(2)]
    matrices = [_matrix(cuda, type_, rows, cols, w) for w in gguf]
    x = random.normal(size=(tokens, cols)).astype(np.float32)
    norm, residual = np.linspace(0.5, 2, cols, dtype=np.float32), x[:, :rows].copy()
    sizes = {"type": WEIGHTS.index(type_), "rows": rows, "cols": cols, "tokens": tokens}
    sizes |= {"row_tiles": 0, "token_tiles": 0}

    normed = np.full((tokens, rows + pad), np.nan, np.float32)
    cuda.project_normed(matrices[0], x, norm, 1e-5, normed, 0)
    wanted = PLAIN.run(
        "project_normed", {"w": gguf[0], "x": x, "norm": norm},
        sizes | {"eps": 1e-5, "out_stride": rows + pad},
    )["out"]  # fmt: skip
    np.testing.assert_array_equal(normed, wanted)

    added = residual.copy()
    cuda.project_residual(matrices[0], to_bfloat16(x), added, 0)
    arrays: dict[str, Array] = {"w": gguf[0], "in": to_bfloat16(x), "x": residual}
    np.testing.assert_array_equal(added, PLAIN.run("project_residual", arrays, sizes)["x"])

    inner = torch.empty((tokens, rows), dtype=torch.bfloat16)
    cuda.gate_up(*matrices, torch.from_numpy(x), torch.from_numpy(norm), 1e-5, inner, 0)
    arrays = {"w": gguf[0], "up": gguf[1], "x": x, "norm": norm}
    wanted = PLAIN.run("gate_up", arrays, sizes | {"eps": 1e-5})["out"]
    np.testing.assert_array_equal(inner.view(torch.uint16).numpy(), wanted)

    ids = np.array([3, -1, rows - 1, rows], np.int32)
    embedded = np.full((4, cols), np.nan, np.float32)
    cuda.embed(matrices[0], ids, embedded, 0)
    expected = dequantise(gguf[0], type_)[[3, 0, rows - 1, 0]].astype(np.float32)
    expected[[1, 3]] = 0
    np.testing.assert_array_equal(embedded, expected)


def _matrix(cuda: Any, type_: str, rows: int, cols: int, gguf: Array) -> Any:
    data = np.empty(cuda.packed_bytes(type_, rows, cols), np.uint8)
    cuda.pack(type_, cols, gguf, data)
    return cuda.Matrix(type_, rows, cols, data)


def columns(rows: int, top_width: int = 5, **values: Array) -> dict[str, Array]:
    """What `Sampling` takes."""
    batch = greedy(rows)
    given = {name: getattr(batch, name).copy() for name in SamplingBatch.__slots__}
    results = {
        "token_ids": np.full(rows, -1, np.int32),
        "finite": np.full(rows, -1, np.int32),
        "token_logprobs": np.full(rows, np.nan, np.float32),
        "top_ids": np.full((rows, top_width), -1, np.int32),
        "top_values": np.full((rows, top_width), np.nan, np.float32),
    }
    return given | results | values


def test_sampling_draws_the_highest_logit_and_its_alternatives(cuda: Any) -> None:
    logits = np.random.default_rng(5).normal(size=(3, 80)).astype(np.float32)
    arrays = columns(3, top_logprobs=np.full(3, 5, np.int32), logprobs=np.ones(3, np.uint8))
    workspace = np.empty(cuda.sampling_workspace(77, 3), np.uint8)
    cuda.sample(logits, 77, cuda.Sampling(arrays), workspace, 0)
    order = np.argsort(-logits[:, :77], axis=1)[:, :5]
    np.testing.assert_array_equal(arrays["token_ids"], order[:, 0])
    np.testing.assert_array_equal(arrays["top_ids"], order)
    assert (arrays["finite"] == 1).all()
    np.testing.assert_array_equal(arrays["token_logprobs"], arrays["top_values"][:, 0])


def test_seeds_may_be_int64_of_the_same_bits(cuda: Any) -> None:
    drawn = []
    for type_ in (np.uint64, np.int64):
        seeds = np.array([2**64 - 3, 7], np.uint64).view(type_)
        ones = np.ones(2, np.float32)
        arrays = columns(2, seed=seeds, draw=seeds[::-1].copy(), temperature=ones)
        workspace = np.empty(cuda.sampling_workspace(80, 2), np.uint8)
        cuda.sample(np.zeros((2, 80), np.float32), 80, cuda.Sampling(arrays), workspace, 0)
        drawn.append(arrays["token_ids"].tolist())
    assert drawn[0] == drawn[1]
    assert drawn[0] != [0, 0]


class Watched(np.ndarray[Any, np.dtype[Any]]):
    """An array that can be watched for its end."""


def watched(array: Array) -> tuple[Array, weakref.ref[Array]]:
    seen = array.view(Watched)
    return seen, weakref.ref(seen)


def test_what_an_object_takes_lives_as_long_as_it_and_no_longer(cuda: Any) -> None:
    data, seen = watched(np.zeros(cuda.packed_bytes("Q4_0", 16, 64), np.uint8))
    matrix = cuda.Matrix("Q4_0", 16, 64, data)
    del data
    gc.collect()
    assert seen() is not None
    out = np.full((1, 64), np.nan, np.float32)
    cuda.embed(matrix, np.zeros(1, np.int32), out, 0)
    assert (out == 0).all()
    del matrix
    gc.collect()
    assert seen() is None


def test_a_step_keeps_its_model_and_contents_alive(cuda: Any) -> None:
    model = make_model(CONFIG, "Q4_0")
    loaded = load_model(CONFIG, model.types, model.tensors, 32)
    step = loaded.plan(1, 32, 2)
    pool, pool_seen = watched(np.zeros(step.pool_shape, np.uint16))
    ids, ids_seen = watched(np.zeros(1, np.int32))
    workspace = np.zeros(step.workspace_bytes, np.uint8)
    arrays = columns(1)
    step.bind(
        pool=pool, workspace=workspace, token_ids=ids, lengths=np.ones(1, np.int32),
        page_table=np.zeros((1, 2), np.int32), sampling=cuda.Sampling(arrays),
    )  # fmt: skip
    del loaded, pool, ids
    gc.collect()
    assert pool_seen() is not None
    assert ids_seen() is not None
    step.launch(0)
    assert arrays["finite"][0] == 1
    del step
    gc.collect()
    assert pool_seen() is None
    assert ids_seen() is None


def test_ops_of_several_threads_do_not_meet(cuda: Any) -> None:
    gguf = encode(np.random.default_rng(2).normal(size=(32, 64)).astype(np.float32), "Q8_0")
    matrix = _matrix(cuda, "Q8_0", 32, 64, gguf)
    wanted = dequantise(gguf, "Q8_0").astype(np.float32)
    outs = [np.full((32, 64), np.nan, np.float32) for _ in range(4)]
    ids = np.arange(32, dtype=np.int32)
    threads = [threading.Thread(target=cuda.embed, args=(matrix, ids, out, 0)) for out in outs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for out in outs:
        np.testing.assert_array_equal(out, wanted)


def test_no_tokens_are_nothing_to_do(cuda: Any) -> None:
    matrix = cuda.Matrix("BF16", 16, 8, np.zeros(cuda.packed_bytes("BF16", 16, 8), np.uint8))
    none = np.empty((0, 8), np.float32)
    cuda.embed(matrix, np.zeros(0, np.int32), none, 0)
    cuda.project_normed(
        matrix, none, np.ones(8, np.float32), 1e-5, np.empty((0, 16), np.float32), 0
    )


def test_the_stub_names_all_that_the_module_has(cuda: Any) -> None:
    import ast

    from support.emulated import ROOT

    stub = ast.parse((ROOT / "runtime/servewright_runtime/_cuda.pyi").read_text())
    named: Mapping[str, Any] = {
        node.name: node for node in stub.body if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    values = {node.target.id for node in stub.body
              if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}  # fmt: skip
    public = {name for name in vars(cuda) if not name.startswith("_")}
    assert public == (named.keys() | values) - {"Tensor"}
    for name, node in named.items():
        if isinstance(node, ast.ClassDef) and name not in ("Tensor", "DeviceError"):
            methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            found = {method for method in vars(getattr(cuda, name)) if method[0] != "_"}
            assert found == methods - {"__init__"}
