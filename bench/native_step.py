"""Rates of the native step alone, on a GGUF file: decode, prefill and a batch of 16.

    python bench/native_step.py MODEL.gguf [--threads 1 2] [--variant avx512 avx2] [--q4-0]

Prints tokens per second, the best and the median of several runs: on a shared machine the best is
what the kernels do and the median what the machine allowed. --q4-0 first writes the file's Q4_1
tensors as Q4_0 beside it, by the gguf package's own quantiser.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from servewright_runtime import native
from servewright_runtime.models.gguf import GGUFFile
from servewright_runtime.models.llama import read_config
from servewright_runtime.models.registry import load_tensors
from servewright_runtime.models.runner import BLOCK_TOKENS, SamplingBatch, StepBatch

PREFILL_TOKENS = 512
DECODE_CONTEXT = 64
BATCH = 16


def load_runner(path: Path, *, threads: int, variant: str) -> native.NativeRunner:
    """The model at `path` on the fused kernels, with KV cache for every batch here."""
    with GGUFFile(path) as file:
        runner = native.NativeRunner(
            read_config(file), num_blocks=512, threads=threads, variant=variant
        )
        load_tensors(file, runner, lambda done, total: None)
    return runner


def greedy(samples: int) -> SamplingBatch:
    """Sampling that takes the highest logit."""
    zeros, none = np.zeros(samples, np.float32), np.zeros(0, np.int32)
    return SamplingBatch(
        temperature=zeros,
        top_k=np.zeros(samples, np.int32),
        top_p=np.ones(samples, np.float32),
        min_p=zeros,
        seed=np.zeros(samples, np.uint64),
        draw=np.zeros(samples, np.uint64),
        presence=zeros,
        frequency=zeros,
        repetition=np.ones(samples, np.float32),
        history_ids=none,
        history_starts=np.zeros(samples + 1, np.int32),
        history_prompts=np.zeros(samples, np.int32),
        bias_ids=none,
        bias_values=np.zeros(0, np.float32),
        bias_starts=np.zeros(samples + 1, np.int32),
        logprobs=np.zeros(samples, np.uint8),
        top_logprobs=np.zeros(samples, np.int32),
    )


def make_batch(sequences: Sequence[tuple[Sequence[int], int]]) -> StepBatch:
    """Sequences as (tokens, tokens already in the cache), the last token of each drawn from."""
    lengths = [len(tokens) for tokens, _ in sequences]
    ends = np.cumsum([0, *lengths], dtype=np.int32)
    width = max(-(-(len(tokens) + context) // BLOCK_TOKENS) for tokens, context in sequences)
    tables = np.arange(len(sequences) * width, dtype=np.int32).reshape(len(sequences), width)
    return StepBatch(
        token_ids=np.concatenate([np.asarray(tokens, np.int32) for tokens, _ in sequences]),
        seq_starts=ends,
        context_starts=np.array([context for _, context in sequences], np.int32),
        block_tables=tables,
        sample_tokens=ends[1:] - 1,
        sampling=greedy(len(sequences)),
    )


def rates(run: Callable[[], int], *, repeats: int) -> tuple[float, float]:
    """Best and median tokens per second of `run`, which returns the tokens it made."""
    run()
    measured = []
    for _ in range(repeats):
        start = time.perf_counter()
        tokens = run()
        measured.append(tokens / (time.perf_counter() - start))
    return max(measured), statistics.median(measured)


def measure(runner: native.NativeRunner, repeats: int) -> dict[str, tuple[float, float]]:
    """Best and median rates of decode, of a batch of 16 and of prefill."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, runner.config.vocab_size, PREFILL_TOKENS).tolist()

    def decode(streams: int, steps: int) -> int:
        for step in range(steps):
            runner.step(make_batch([([7 + s], DECODE_CONTEXT + step) for s in range(streams)]))
        return streams * steps

    def prefill() -> int:
        runner.step(make_batch([(prompt, 0)]))
        return PREFILL_TOKENS

    return {
        "decode": rates(lambda: decode(1, 16), repeats=3 * repeats),
        f"batch {BATCH}": rates(lambda: decode(BATCH, 4), repeats=repeats),
        f"prefill {PREFILL_TOKENS}": rates(prefill, repeats=repeats),
    }


def write_q4_0(path: Path) -> Path:
    """Copy a GGUF file with its Q4_1 tensors as Q4_0; returns the path beside it."""
    import gguf
    from gguf import GGMLQuantizationType as TensorType
    from gguf import quants

    target = path.with_suffix(".Q4_0.gguf")
    if target.exists():
        return target
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value_type = field.types[0]
        of = field.types[-1] if value_type == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), value_type, sub_type=of)
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if kind == TensorType.Q4_1:
            data = quants.quantize(quants.dequantize(data, kind), TensorType.Q4_0)
            kind = TensorType.Q4_0
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("path", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--variant", nargs="+", default=[native.chosen_variant()])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--q4-0", action="store_true")
    arguments = parser.parse_args()
    path = write_q4_0(arguments.path) if arguments.q4_0 else arguments.path
    for variant in arguments.variant:
        for threads in arguments.threads:
            runner = load_runner(path, threads=threads, variant=variant)
            gigabytes = runner.weights_bytes / 1e9
            for name, (best, median) in measure(runner, arguments.repeats).items():
                read = f"  {best * gigabytes:5.1f} GB/s" if name == "decode" else ""
                print(
                    f"{variant:8} {threads} threads  {name:12} best {best:7.1f} "
                    f"median {median:7.1f} tok/s{read}",
                    flush=True,
                )
            runner.close()


if __name__ == "__main__":
    main()
