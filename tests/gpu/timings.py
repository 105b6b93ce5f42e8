"""Times of decode steps on a device, beside what hack/roofline.py predicts.

An 8B Llama of random weights, at batch 1 after 1,024 positions as predicted, and with more slots.
A step's time is the median of many replays of its captured graph; every replay reads all weights,
and each slot K and V of pages of its own: many times the L2 cache, so none is flattered by it. The
launches' own times are the profiler's.
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
from servewright_runtime.models.runner import LlamaConfig, StepBatch
from support.native_model import encode
from support.steps import Piece, make_batch

TYPES = ("BF16", "Q8_0", "Q4_0", "Q4_1")
SLOTS = (1, 8, 32, 64)
REPLAYS = 100
PROMPT = 1024  # tokens of a timed prefill
PAGE = 16  # positions
BF16_BYTES = 2
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
    kernels: ModuleType,
    device: Device,
    config: LlamaConfig = LLAMA_8B,
    *,
    types: Sequence[str] = TYPES,
    replays: int = REPLAYS,
) -> Iterator[Timed]:
    """Of every weight type."""
    for weights in types:
        runner = _random_runner(kernels, device, config, weights)
        predicted = list(roofline.launches(weights)) if config == LLAMA_8B else []
        for slots in SLOTS:
            yield _step(runner, device, weights, slots, predicted, replays)
        yield _prefill(runner, device, weights, replays // 10 or 1)
        yield from _launches(runner, device, weights, predicted)
        runner.close()


def copy_rate(device: Device, size: int = 1 << 31) -> float:
    """Bytes a second, read and written, of a copy of `size` bytes: this card's own ceiling."""
    source = torch.empty(size, dtype=torch.uint8, device=device.place)
    target = torch.empty_like(source)
    with device.entered():
        seconds = _median(device, lambda: target.copy_(source), 20)
    return 2 * source.nbytes / seconds


def table(timed: Sequence[Timed], rate: float) -> str:
    """Markdown, with this card's copy rate and each share of the datasheet's."""
    lines = [
        f"Copy rate of this card: {rate / 1e12:.2f} TB/s",
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
        cache=lambda limit: KvPlan(max(SLOTS) * positions(config) // PAGE, longest),
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


def positions(config: LlamaConfig) -> int:
    """Of a timed sequence, the new token counted: 1,024 unless the model has fewer."""
    return min(roofline.CONTEXT, config.context_length // 2)


def batch(config: LlamaConfig, slots: int) -> StepBatch:
    """Sequences that decode at their last position, each on pages of its own."""
    pages = positions(config) // PAGE
    pieces = [
        Piece([i % config.vocab_size], positions(config) - 1, range(i * pages, (i + 1) * pages))
        for i in range(slots)
    ]
    return make_batch(pieces, logits=False)


def step_bytes(kernels: ModuleType, config: LlamaConfig, weights: str, slots: int) -> int:
    """What a step reads at least: all matrices once, and K and V of every slot's positions.

    Of an embedding that is not the head too it reads a row a slot, which is left out.
    """
    matrices = sum(
        int(kernels.packed_bytes(weights, shape[1], shape[0]))
        for name, shape in tensor_shapes(config)
        if len(shape) == 2 and (name != "token_embd.weight" or config.tied_head)
    )
    position = 2 * BF16_BYTES * config.kv_heads * config.head_dim
    return matrices + slots * positions(config) * config.layers * position


def _step(
    runner: CudaRunner,
    device: Device,
    weights: str,
    slots: int,
    predicted: Sequence[roofline.Launch],
    replays: int,
) -> Timed:
    runner.step(batch(runner.config, slots))
    with device.entered():
        replay = runner._decode._replays[runner._decode.slots_for(slots)]
        seconds = _median(device, replay, replays)
    one = [sum(e.times * e.seconds(b) for e in predicted) for b in roofline.BOUNDARIES]
    return Timed(
        weights,
        "step",
        slots,
        seconds,
        step_bytes(runner._kernels, runner.config, weights, slots),
        (one[0], one[1]) if predicted and slots == 1 else None,
    )


def _prefill(runner: CudaRunner, device: Device, weights: str, repeats: int) -> Timed:
    tokens = min(PROMPT, runner.config.context_length // 2)
    piece = Piece(
        [i % runner.config.vocab_size for i in range(tokens)], 0, range(tokens // PAGE + 1)
    )
    prompt = make_batch([piece], sample=[tokens - 1], logits=False)
    with device.entered():
        seconds = _median(device, lambda: runner.step(prompt), repeats)
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


def _median(device: Device, launch: Callable[[], object], repeats: int) -> float:
    """Seconds on the current stream, by events; on the CPU, of its clock."""
    launch()
    if device.place.type != "cuda":
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
