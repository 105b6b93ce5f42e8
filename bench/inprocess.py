"""This engine without HTTP, in a process of its own. Each command prints one JSON object.

    python -m bench.inprocess throughput MODEL --threads N --repeats R
    python -m bench.inprocess decode MODEL --threads N --repeats R
    python -m bench.inprocess streams MODEL --threads N --streams S --requests R --seed SEED
    python -m bench.inprocess loading MODEL --threads N

Everything goes through `Engine`, as in a replica: scheduler, native step, sampling, detokenizer.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import memory
from bench.client import percentile
from bench.loads import DECODE_TOKENS, PREFILL_TOKENS, TOKENS_IN, TOKENS_OUT
from bench.model import word_tokens

from servewright_runtime.config import MAX_STEP_TOKENS, MIXED_PREFILL_TOKENS
from servewright_runtime.engine.config import EngineConfig
from servewright_runtime.engine.engine import Engine
from servewright_runtime.engine.observer import NullObserver
from servewright_runtime.engine.requests import Output, Request, SamplingParams
from servewright_runtime.models import registry
from servewright_runtime.models.loaded import LoadedModel

MAX_BATCH = 16
MAX_MODEL_LEN = 1024
KV_BLOCKS = MAX_BATCH * MAX_MODEL_LEN // 16
ANSWER_TIMEOUT_S = 120.0


@dataclass(slots=True)
class Arrivals:
    """When the tokens of one request came."""

    sent_at: float
    first_at: float = 0.0
    last_at: float = 0.0
    tokens: int = 0
    error: Exception | None = None


def load(path: Path, threads: int) -> LoadedModel:
    return registry.load(
        path,
        format=None,
        kernel="Fused",
        num_blocks=lambda config: KV_BLOCKS,
        threads=threads,
        progress=lambda done, total: None,
    )


def engine_config() -> EngineConfig:
    """As a replica has it, with places for just the bench's streams."""
    return EngineConfig(
        name="bench",
        max_model_len=MAX_MODEL_LEN,
        max_batch=MAX_BATCH,
        max_step_tokens=MAX_STEP_TOKENS,
        mixed_prefill_tokens=MIXED_PREFILL_TOKENS,
        max_queued=0,
        prefix_cache=True,
    )


def started_engine(model: LoadedModel) -> Engine:
    engine = Engine(model, engine_config(), NullObserver())
    engine.start()
    return engine


def drive(
    engine: Engine, prompts: Sequence[Sequence[int]], *, streams: int, max_tokens: int
) -> tuple[list[Arrivals], float]:
    """Run all prompts, `streams` at a time, each followed by the next as soon as it has ended.

    Returns the arrivals in the order in which the requests ended, and the seconds it all took.
    """
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    ended: queue.SimpleQueue[Arrivals] = queue.SimpleQueue()

    def submit(number: int) -> None:
        arrivals = Arrivals(time.perf_counter())

        def sink(outputs: list[Output]) -> None:
            now = time.perf_counter()
            (output,) = outputs
            if output.token_ids and not arrivals.tokens:
                arrivals.first_at = now
            arrivals.tokens += len(output.token_ids)
            arrivals.last_at = now
            if output.finish_reason is not None:
                arrivals.error = output.error
                ended.put(arrivals)

        engine.submit([Request(str(number), tuple(prompts[number]), sampling)], sink)

    done: list[Arrivals] = []
    began = time.perf_counter()
    for number in range(min(streams, len(prompts))):
        submit(number)
    sent = min(streams, len(prompts))
    while len(done) < len(prompts):
        arrivals = ended.get(timeout=ANSWER_TIMEOUT_S)
        if arrivals.error is not None or arrivals.tokens != max_tokens:
            raise RuntimeError(f"{arrivals.tokens} of {max_tokens} tokens: {arrivals.error}")
        done.append(arrivals)
        if sent < len(prompts):
            submit(sent)
            sent += 1
    return done, time.perf_counter() - began


def throughput(
    model: LoadedModel, words: Sequence[int], repeats: int, *, decode_only: bool
) -> dict[str, Any]:
    """Decode and prefill rates of one sequence, in tokens a second, after one warm-up each."""
    engine = started_engine(model)
    draw = random.Random()
    decode, prefill = [], []
    for _ in range(1 + repeats):
        # The clock of decode starts at the first token: 128 steps of one token each follow.
        (arrivals,), _ = drive(
            engine, [draw.choices(words, k=1)], streams=1, max_tokens=1 + DECODE_TOKENS
        )
        decode.append(DECODE_TOKENS / (arrivals.last_at - arrivals.first_at))
        if not decode_only:
            (arrivals,), _ = drive(
                engine, [draw.choices(words, k=PREFILL_TOKENS)], streams=1, max_tokens=1
            )
            prefill.append(PREFILL_TOKENS / (arrivals.first_at - arrivals.sent_at))
    engine.stop()
    return {"kernel": model.runner.kernel, "decode": decode[1:], "prefill": prefill[1:]}


def streams(
    model: LoadedModel, words: Sequence[int], *, streams: int, requests: int, seed: int
) -> dict[str, Any]:
    """The load of the HTTP rows, without HTTP: 64 tokens in, 64 out, all-new prompts."""
    engine = started_engine(model)
    draw = random.Random(seed)
    warm_up = [draw.choices(words, k=TOKENS_IN) for _ in range(streams)]
    drive(engine, warm_up, streams=streams, max_tokens=8)
    prompts = [draw.choices(words, k=TOKENS_IN) for _ in range(requests)]
    done, seconds = drive(engine, prompts, streams=streams, max_tokens=TOKENS_OUT)
    engine.stop()
    ttfts = [arrivals.first_at - arrivals.sent_at for arrivals in done]
    return {
        "tokens_per_s": sum(arrivals.tokens for arrivals in done) / seconds,
        "ttft_p50_s": statistics.median(ttfts),
        "ttft_p99_s": percentile(ttfts, 99),
    }


def loading(path: Path, threads: int) -> dict[str, Any]:
    """Seconds and memory that loading takes; the peak is of this process, KV cache untouched."""
    before = memory.resident_bytes()
    memory.reset_peak()
    began = time.perf_counter()
    model = load(path, threads)
    seconds = time.perf_counter() - began
    result = {
        "file_bytes": path.stat().st_size,
        "weights_bytes": model.runner.weights_bytes,
        "rise_bytes": memory.peak_bytes() - before,
        "seconds": seconds,
    }
    model.runner.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["throughput", "decode", "streams", "loading"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.what == "loading":
        result = loading(args.model, args.threads)
    else:
        words = word_tokens(args.model)
        model = load(args.model, args.threads)
        if args.what == "streams":
            result = streams(
                model, words, streams=args.streams, requests=args.requests, seed=args.seed
            )
        else:
            result = throughput(model, words, args.repeats, decode_only=args.what == "decode")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
