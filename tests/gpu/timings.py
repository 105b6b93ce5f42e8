"""Times of decode steps on a device, beside what hack/roofline.py predicts.

An 8B Llama of random weights, at batch 1 after 1,024 positions as predicted, and with more slots.
A step's time is the median of many replays of its captured graph; every replay reads all weights,
many times the L2 cache, so none is flattered by it. The launches' own times are the profiler's.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from hack import roofline

from servewright_runtime.config import KvPlan
from servewright_runtime.cuda.device import Device
from servewright_runtime.cuda.runner import CudaRunner
from servewright_runtime.models.llama import tensor_shapes
from servewright_runtime.models.runner import LlamaConfig
from support.native_model import encode
from support.steps import Piece, make_batch

TYPES = ("BF16", "Q8_0", "Q4_0", "Q4_1")
SLOTS = (1, 8, 32, 64)
REPLAYS = 100
PROMPT = 1024  # tokens of a timed prefill
LLAMA_8B = LlamaConfig(
    vocab_size=roofline.VOCAB,
    hidden_size=roofline.HIDDEN,
    layers=roofline.LAYERS,
    heads=roofline.HEADS,
    kv_heads=roofline.KV_HEADS,
    head_dim=roofline.HEAD_DIM,
    ffn_size=roofline.FEED_FORWARD,
    norm_eps=1e-5,
    rope_base=500000.0,
    rope_dims=roofline.HEAD_DIM,
    rope_scale=1.0,
    rope_factors=None,
    context_length=8192,
    tied_head=False,
)


@dataclass(frozen=True)
class Timed:
    """One thing of one weight type."""

    weights: str
    what: str  # "step", "launch: NAME", "prefill"
    slots: int
    seconds: float  # median
    bytes: float  # from memory at least; 0 where memory does not bound it
    predicted_s: tuple[float, float] | None  # the range's ends


def steps(
    kernels: ModuleType, device: Device, config: LlamaConfig = LLAMA_8B, *, replays: int = REPLAYS
) -> Iterator[Timed]:
    """Of every weight type."""
    for weights in TYPES:
        runner = _random_runner(kernels, device, config, weights)
        predicted = list(roofline.launches(weights)) if config == LLAMA_8B else []
        for slots in SLOTS:
            yield _step(runner, device, weights, slots, predicted, replays)
        yield _prefill(runner, device, weights, replays // 10 or 1)
        yield from _launches(runner, device, weights, predicted)
        runner.close()


def copy_rate(device: Device) -> float:
    """Bytes a second, read and written, of a copy of 2 GiB: this card's own ceiling."""
    source = torch.empty(1 << 31, dtype=torch.uint8, device=device.place)
    target = torch.empty_like(source)
    with device.entered():
        seconds = _median(lambda: target.copy_(source), 20)
    return 2 * source.nbytes / seconds


def table(timed: Sequence[Timed], device: Device) -> str:
    """Markdown, with this card's copy rate and each share of the datasheet's."""
    lines = [
        f"Copy rate of this card: {copy_rate(device) / 1e12:.2f} TB/s",
        "",
        "| weights | what | slots | us | predicted, us | GB/s | of 3.35 TB/s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in timed:
        rate = each.bytes / each.seconds
        low_high = "-".join(f"{s * 1e6:.1f}" for s in each.predicted_s or ())
        shares = f"{rate / 1e9:,.0f} | {rate / roofline.DATASHEET:.0%}" if rate else "|"
        lines.append(
            f"| {each.weights} | {each.what} | {each.slots} | {each.seconds * 1e6:,.1f} |"
            f" {low_high} | {shares} |"
        )
    return "\n".join(lines)


def _random_runner(
    kernels: ModuleType, device: Device, config: LlamaConfig, weights: str
) -> CudaRunner:
    """Random weights, the same rows over and over: making 8B of them would take minutes."""
    types = {name: "F32" if len(shape) == 1 else weights for name, shape in tensor_shapes(config)}
    longest = min(2 * PROMPT, config.context_length)
    runner = CudaRunner(
        config,
        types,
        cache=lambda limit: KvPlan(max(SLOTS) * longest // 16 // 8 + longest // 16, longest),
        longest=longest,
        max_batch=max(SLOTS),
        step_tokens=PROMPT,
        threads=8,
        kernels=kernels,
        device=device,
    )
    random = np.random.default_rng(0)
    for name, shape in tensor_shapes(config):
        if len(shape) == 1:
            runner.load(name, "F32", 0, np.ones((1, shape[0]), np.float32).view(np.uint8))
            continue
        cols, rows = shape
        values = random.standard_normal((32, cols)).astype(np.float32) / cols**0.5
        chunk = np.tile(encode(values, weights), (64, 1))
        for first in range(0, rows, len(chunk)):
            runner.load(name, weights, first, chunk[: rows - first])
    runner.seal()
    return runner


def _batch(runner: CudaRunner, slots: int) -> object:
    """Sequences that decode behind 1,024 positions, all on the same pages but the last."""
    config, positions = runner.config, min(roofline.CONTEXT, runner.config.context_length // 2)
    shared = list(range(positions // 16 - 1))
    pieces = [
        Piece([i % config.vocab_size], positions - 1, [*shared, len(shared) + i])
        for i in range(slots)
    ]
    return make_batch(pieces, logits=False)


def _step(
    runner: CudaRunner,
    device: Device,
    weights: str,
    slots: int,
    predicted: Sequence[roofline.Launch],
    replays: int,
) -> Timed:
    runner.step(_batch(runner, slots))  # type: ignore[arg-type]
    with device.entered():
        seconds = _median(runner._decode._replays[runner._decode.slots_for(slots)], replays)
    one = [sum(e.times * e.seconds(b) for e in predicted) for b in roofline.BOUNDARIES]
    return Timed(
        weights,
        "step",
        slots,
        seconds,
        runner.weights_bytes - _embedding_bytes(runner, weights),
        (one[0], one[1]) if predicted and slots == 1 else None,
    )


def _embedding_bytes(runner: CudaRunner, weights: str) -> int:
    """Of which a step reads a row a slot."""
    config = runner.config
    if config.tied_head:
        return 0
    return int(runner._kernels.packed_bytes(weights, config.vocab_size, config.hidden_size))


def _prefill(runner: CudaRunner, device: Device, weights: str, repeats: int) -> Timed:
    tokens = min(PROMPT, runner.config.context_length // 2)
    piece = Piece([i % runner.config.vocab_size for i in range(tokens)], 0, range(tokens // 16 + 1))
    batch = make_batch([piece], sample=[tokens - 1], logits=False)
    with device.entered():
        seconds = _median(lambda: runner.step(batch), repeats)
    return Timed(weights, f"prefill of {tokens}", 1, seconds, 0, None)


def _launches(
    runner: CudaRunner, device: Device, weights: str, predicted: Sequence[roofline.Launch]
) -> Iterator[Timed]:
    """The kernels of one step at batch 1, medians over the layers; a GPU's profiler tells them."""
    if device.place.type != "cuda":
        return
    from torch.profiler import ProfilerActivity, profile

    with device.entered(), profile(activities=[ProfilerActivity.CUDA]) as found:
        runner._decode._replays[1]()
        device.wait()
    kernels = sorted(
        (e for e in found.events() if e.device_type.name == "CUDA" and "mem" not in e.name.lower()),
        key=lambda e: e.time_range.start,
    )
    layers = runner.config.layers
    if len(kernels) != 5 * layers + 3:
        raise RuntimeError(f"the profiler tells {len(kernels)} kernels of {5 * layers + 3}")
    seconds = [e.time_range.elapsed_us() * 1e-6 for e in kernels]
    of_layers = [statistics.median(seconds[1 + i : -2 : 5]) for i in range(5)]
    for launch, each in zip(
        predicted, [seconds[0], *of_layers, seconds[-2], seconds[-1]], strict=True
    ):
        ends = (launch.seconds(0.0), launch.seconds(0.0))
        yield Timed(weights, f"launch: {launch.name}", 1, each, launch.floor, ends)


def _median(launch: Callable[[], object], repeats: int) -> float:
    """Seconds on the current stream, by events; on the CPU, of its clock."""
    launch()
    if not torch.cuda.is_available():
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            launch()
            times.append(time.perf_counter() - start)
        return statistics.median(times)
    marks = [
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(repeats + 1)
    ]
    marks[0].record()
    for mark in marks[1:]:
        launch()
        mark.record()
    marks[-1].synchronize()
    milliseconds: list[float] = [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]
    return statistics.median(milliseconds) * 1e-3
