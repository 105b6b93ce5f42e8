"""llama.cpp through the `llama_cpp` package: decode and prefill as llama-bench defines them.

    python -m bench.llama_package {all|decode} MODEL --threads N --repeats R

For machines that have the package but not llama.cpp's own programs. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import time
from pathlib import Path
from typing import Any

from bench.loads import DECODE_TOKENS, PREFILL_TOKENS


def throughput(
    path: Path, *, threads: int, repeats: int, decode_only: bool
) -> dict[str, list[float]]:
    """Rates in tokens a second, after one warm-up each. Token ids are drawn, as llama-bench's."""
    llama_cpp: Any = importlib.import_module("llama_cpp")  # no dependency of ours, and untyped
    llama = llama_cpp.Llama(
        model_path=str(path),
        n_ctx=PREFILL_TOKENS,
        n_batch=PREFILL_TOKENS,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    draw = random.Random()
    decode, prefill = [], []
    for _ in range(1 + repeats):
        tokens = draw.choices(range(llama.n_vocab()), k=PREFILL_TOKENS)
        if not decode_only:
            llama.reset()
            began = time.perf_counter()
            llama.eval(tokens)
            prefill.append(PREFILL_TOKENS / (time.perf_counter() - began))
        llama.reset()
        began = time.perf_counter()
        for token in tokens[:DECODE_TOKENS]:
            llama.eval([token])
        decode.append(DECODE_TOKENS / (time.perf_counter() - began))
    return {"decode": decode[1:], "prefill": prefill[1:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["all", "decode"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    rates = throughput(
        args.model,
        threads=args.threads,
        repeats=args.repeats,
        decode_only=args.what == "decode",
    )
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
