"""Every op of the CUDA half against float64, at sizes of real models; torch's ops beside it.

The bounds are those of the emulated tests (support/projections.py, support/networks.py), where each
rounding to nearest may be a truncation: tensor cores add so. An op of torch is right where it gives
the bits of the kernels that it calls, which are checked here too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from types import ModuleType

import numpy as np
import torch

from gpu import attention_numbers
from gpu.checks import Check, Ops, ratio
from servewright_runtime.cuda.device import Device
from servewright_runtime.ops.torch_ops import Dequantise, Mlp, Project, Sample
from support.emulated import from_bfloat16, to_bfloat16
from support.networks import ACTIVATIONS, CUDA_COSTS, exact, random_net
from support.projections import EPS, NAMES, normed_products, products, random_matrix, swiglu
from support.sampling_rows import Rows

COUNTERS = 256  # bytes of an mlp's workspace that are 0 between launches


@dataclass(frozen=True)
class Sizes:
    """Of what is proved."""

    projections: Sequence[tuple[int, int]]  # rows, cols
    tokens: Sequence[int]
    vocabularies: Sequence[int]
    chunks: Sequence[tuple[int, int]]  # first position, tokens
    heads: Sequence[tuple[int, int]]  # of decode attention: query heads, KV heads
    batches: Sequence[Sequence[int]]  # lengths of its sequences, the new token counted
    networks: Sequence[tuple[Sequence[int], int]]  # widths, tokens


REAL = Sizes(
    projections=((4096, 4096), (1024, 14336), (6144, 4096)),
    tokens=(1, 2, 7, 8, 9, 16, 31, 33, 64, 200),
    vocabularies=(49152, 128256),
    chunks=((0, 1), (0, 333), (1000, 64), (255, 17)),
    heads=((32, 8), (32, 4)),  # 4 and 8 a KV head
    # 8,192 positions are 32 blocks' and their results more than one round of the block that merges.
    batches=(
        (8192,),
        (1, 255, 256, 257, 1024, 8192, 0, 16),
        tuple(1 + 37 * i % 1100 for i in range(64)),
    ),
    # The third is of more layers than a launch takes.
    networks=(((784, 128, 128, 10), 1), ((4096, 4096, 4096), 70), ((16,) * 70, 2)),
)
# Of the emulator, and of compute-sanitizer, under which a launch takes many times its time.
SMALL = Sizes(
    projections=((96, 160), (33, 64)),
    tokens=(1, 9),
    vocabularies=(4099,),
    chunks=((0, 5), (20, 17)),
    heads=((4, 1), (8, 1)),
    batches=((1, 17, 255, 256, 257, 0), (1024,)),
    networks=(((131, 66, 7), 5), ((6,) * 66, 2)),
)


def checks(kernels: ModuleType, device: Device, sizes: Sizes = REAL) -> Iterator[Check]:
    """All of them; the device's stream is made current here."""
    ops = Ops(kernels, device)
    with device.entered():
        for type_ in range(len(NAMES)):
            for rows, cols in sizes.projections:
                yield from _projections(ops, type_, rows, cols, sizes.tokens)
        yield from _rows(ops, sizes)
        for vocab in sizes.vocabularies:
            yield from _sampling(ops, vocab)
        for widths, tokens in sizes.networks:
            yield from _network(ops, widths, tokens)
        for head_dim in (64, 128):
            for first, tokens in sizes.chunks:
                yield from attention_numbers.chunk(ops, head_dim, first, tokens)
            for heads, lengths in itertools.product(sizes.heads, sizes.batches):
                yield from attention_numbers.decode(ops, head_dim, *heads, lengths)


def _projections(
    ops: Ops, type_: int, rows: int, cols: int, tokens: Sequence[int]
) -> Iterator[Check]:
    random, stream = np.random.default_rng((type_, rows, cols)), ops.device.stream
    k, name = ops.kernels, f"{NAMES[type_]} {rows} x {cols}"
    w, up = random_matrix(random, type_, rows, cols), random_matrix(random, type_, rows, cols)
    data = ops.packed(w)
    packed, packed_up = ops.matrix(w, data), ops.matrix(up, ops.packed(up))

    dense = ops.poison(rows, cols, dtype=torch.bfloat16)
    k.dequantise(packed, dense, stream)
    nearest = from_bfloat16(to_bfloat16(w.weights))
    yield Check(f"dequantise {name}", ratio(ops.get(dense) - nearest, np.zeros_like(nearest)))
    by_torch = ops.by_torch(Dequantise, data, NAMES[type_], rows, cols)
    yield ops.equal(f"torch.dequantise {name}", dense, by_torch)

    ids = random.integers(0, rows, 50).astype(np.int32)
    x = ops.poison(len(ids), cols)
    k.embed(packed, ops.put(ids), x, stream)
    exact = w.weights[ids]
    # d * q + m in float32 is one rounding.
    yield Check(f"embed {name}", ratio(ops.get(x) - exact, abs(exact) * 2.0**-23))

    for count in tokens:
        x_, norm = (
            random.standard_normal((count, cols)).astype(np.float32),
            random.uniform(0.5, 1.5, cols).astype(np.float32),
        )
        wanted = normed_products(w, x_, norm)
        out = ops.poison(count, rows)
        k.project_normed(packed, ops.put(x_), ops.put(norm), EPS, out, stream)
        error = ops.get(out) - wanted.values
        yield Check(f"project_normed {name}, {count} tokens", ratio(error, wanted.errors))
        given = ops.put(x_), data, NAMES[type_], rows
        by_torch = ops.by_torch(Project, *given, ops.put(norm), EPS)
        yield ops.equal(f"torch.project {name}, normed, {count} tokens", out, by_torch)

        wanted = swiglu(wanted, normed_products(up, x_, norm))
        inner = ops.poison(count, rows, dtype=torch.bfloat16)
        k.gate_up(packed, packed_up, ops.put(x_), ops.put(norm), EPS, inner, stream)
        error = ops.get(inner) - wanted.values
        yield Check(f"gate_up {name}, {count} tokens", ratio(error, wanted.errors))

        rounded = to_bfloat16(x_)
        wanted = products(w, from_bfloat16(rounded))
        before = random.standard_normal((count, rows)).astype(np.float32)
        sums, alone = ops.put(before), ops.put(np.zeros_like(before))
        k.project_residual(packed, ops.put(rounded), sums, stream)
        error = ops.get(sums) - (before + wanted.values)
        bound = wanted.errors + 2.0**-23 * (abs(before) + abs(wanted.values))
        yield Check(f"project_residual {name}, {count} tokens", ratio(error, bound))
        k.project_residual(packed, ops.put(rounded), alone, stream)
        by_torch = ops.by_torch(Project, *given)
        yield ops.equal(f"torch.project {name}, {count} tokens", alone, by_torch)


def _rows(ops: Ops, sizes: Sizes) -> Iterator[Check]:
    """The rows' ops of a prefill."""
    random, stream, k = np.random.default_rng(9), ops.device.stream, ops.kernels
    tokens = max(sizes.tokens)
    hidden = sizes.projections[0][1]
    x, delta = random.standard_normal((2, tokens, hidden)).astype(np.float32)
    norm = random.uniform(0.5, 1.5, hidden).astype(np.float32)
    on_device, out = ops.put(x), ops.poison(tokens, hidden, dtype=torch.bfloat16)
    k.residual_norm(on_device, ops.put(delta), ops.put(norm), EPS, out, stream)
    total = (x + delta).astype(np.float64)
    yield Check("residual_norm, the sum", ratio(ops.get(on_device) - (x + delta), 0 * total))
    exact = total / np.sqrt((total**2).mean(axis=1, keepdims=True) + EPS) * norm
    # The bf16 of the result is half a unit off, its float32 arithmetic far less.
    yield Check("residual_norm", ratio(ops.get(out) - exact, abs(exact) * 2.0**-9))

    both = random.standard_normal((tokens, 2 * hidden)).astype(np.float32) * 3
    inner = ops.poison(tokens, hidden, dtype=torch.bfloat16)
    k.silu_mul(ops.put(both), inner, stream)
    gate, up = both[:, :hidden].astype(np.float64), both[:, hidden:]
    exact = gate / (1 + np.exp(-gate)) * up
    yield Check("silu_mul", ratio(ops.get(inner) - exact, abs(exact) * 2.0**-9 + 2.0**-126))


def _network(ops: Ops, widths: Sequence[int], tokens: int) -> Iterator[Check]:
    """A dense network, with each activation in each place."""
    random, k = np.random.default_rng((*widths, tokens)), ops.kernels
    # Of many layers, such that errors do not grow from one to the next.
    scale = 0.2 if len(widths) > 9 else 1.0
    for shift, last in enumerate(ACTIVATIONS):
        names = [ACTIVATIONS[(shift + i) % len(ACTIVATIONS)] for i in range(2 - len(widths), 1)]
        net = random_net(random, widths, names, scale)
        x = random.standard_normal((tokens, widths[0])).astype(np.float32)
        weights = [ops.put(w) for w in net.weights]
        biases = [None if b is None else ops.put(b) for b in net.biases]
        workspace = ops.workspace(k.mlp_workspace(widths, tokens))
        workspace[:COUNTERS] = 0
        given, out, again = ops.put(x), *(ops.poison(tokens, widths[-1]) for _ in range(2))
        for to in (out, again):
            k.mlp(given, weights, biases, names, to, workspace, ops.device.stream)
        values, errors = exact(net, x, CUDA_COSTS)
        name = f"{len(names)} layers of {widths[0]} to {widths[-1]}, {last}, {tokens} tokens"
        yield Check(f"mlp {name}", float(np.max(abs(ops.get(out) - values) / errors)))
        yield ops.equal(f"mlp again {name}", out, again)
        by_torch = ops.by_torch(Mlp, given, weights, biases, names)
        yield ops.equal(f"torch.mlp {name}", out, by_torch)


def _sampling(ops: Ops, vocab: int) -> Iterator[Check]:
    """Draws of each kind must be the reference's: a wrong one counts as infinitely wrong."""
    random = np.random.default_rng(vocab)
    logits = (random.standard_normal((8, vocab)) * 3).astype(np.float32)
    histories = [random.integers(0, vocab, 40).tolist() for _ in range(8)]
    rows = Rows(
        logits,
        temperature=[0, 1, 1, 0.7, 1, 1, 1.3, 0],
        top_k=[0, 0, 40, 0, 0, 5, 0, 0],
        top_p=[1, 1, 1, 0.9, 1, 0.8, 1, 1],
        min_p=[0, 0, 0, 0, 0.05, 0, 0, 0],
        presence=0.5,
        frequency=0.2,
        repetition=1.2,
        histories=histories,
        history_prompts=20,
        biases=[[(3, 5.0)], *([[]] * 7)],
    )
    arrays = {
        name: ops.put(column.view(np.int64) if column.dtype == np.uint64 else column)
        for name, column in rows.columns.items()
    }
    drawn = torch.full((8,), -1, dtype=torch.int32, device=ops.device.place)
    results = {"token_ids": drawn, "finite": torch.zeros_like(drawn)}
    results |= {"token_logprobs": ops.poison(8), "top_values": ops.poison(8, 20)}
    results["top_ids"] = torch.zeros((8, 20), dtype=torch.int32, device=ops.device.place)
    k = ops.kernels
    workspace, on_device = ops.workspace(k.sampling_workspace(vocab, 8)), ops.put(rows.logits)
    k.sample(on_device, vocab, k.Sampling(arrays | results), workspace, ops.device.stream)
    is_equal = np.array_equal(ops.get(drawn), rows.by_reference())
    yield Check(f"sample of {vocab}", 0.0 if is_equal else np.inf)
    parameters = [arrays[field.name] for field in fields(Sample)[1:]]
    by_torch = ops.by_torch(Sample, on_device[:, :vocab].contiguous(), *parameters)
    yield ops.equal(f"torch.sample of {vocab}", drawn, by_torch[0])


# Named here so that the tests speak of the same list.
OPS: tuple[str, ...] = (
    "dequantise", "embed", "project_normed", "gate_up", "project_residual", "residual_norm",
    "silu_mul", "sample", "mlp", "rope_append", "prefill_attention", "attention",
    "torch.dequantise", "torch.project", "torch.sample", "torch.mlp", "torch.prefill_attention",
    "torch.paged_attention",
)  # fmt: skip
