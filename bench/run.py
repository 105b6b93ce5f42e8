"""`make bench`: this engine beside llama.cpp, same file, same threads, same run.

Each repetition measures one engine right after the other and changes the order, so that what the
machine does meanwhile hits both alike. Every part runs in a process of its own. The whole takes
about 11 minutes, `--quick` about 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Run as a file, and of this checkout, whatever is installed.
sys.path[:0] = [str(ROOT), str(ROOT / "operator"), str(ROOT / "runtime"), str(ROOT / "tests")]

from bench import machine, measures, page, plot, report  # noqa: E402
from bench.loads import OTHER_TYPES, TOKENS_IN, TOKENS_OUT  # noqa: E402
from bench.model import example_model, requantised, word_tokens  # noqa: E402
from bench.result import Result  # noqa: E402
from bench.rivals import find_rival  # noqa: E402
from bench.servers import BenchFailed  # noqa: E402

from support.tiny import make_large_gguf  # noqa: E402

EXAMPLE = ROOT / "examples" / "01-smollm2.yaml"
LARGE_BYTES = 500_000_000
# Above this share of all cores, other work is worth a note.
QUIET_SHARE = 0.03
# Streams -> requests of each: enough that a load takes some seconds.
FULL = {1: 10, 4: 6, 16: 4}
QUICK = {1: 4, 4: 3, 16: 2}


def main() -> int:
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    plan = _plan(args)
    repeats = args.repeats or (1 if args.quick else 4)
    result = _empty_result(plan, repeats)
    failed = False
    try:
        _measure(plan, result, repeats)
    except BenchFailed as error:  # what was measured before is worth showing
        failed = True
        print(f"bench: {error}", file=sys.stderr)
    path = args.json or args.out / "result.json"
    path.write_text(json.dumps(dataclasses.asdict(result), indent=1) + "\n")
    text = report.render(result)
    print(f"\n{text}\nsamples: {path}")
    if failed:
        return 1
    if args.write_docs:
        page.write("bench", text, plot.draw(result))
    missed = [verdict for verdict in report.verdicts(result) if not verdict.holds]
    for verdict in missed:
        print(f"missed: {verdict.label}: {verdict.ratio:.2f}, target {verdict.target}")
    return 1 if missed and args.strict else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short repetition")
    parser.add_argument("--repeats", type=int, help="alternating repetitions (4; quick: 1)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--model", type=Path, help="GGUF file to requantise (the example's)")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "out")
    parser.add_argument("--json", type=Path, help="where the samples go (OUT/result.json)")
    parser.add_argument("--write-docs", action="store_true", help="renew docs/performance.md")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a target is missed")
    return parser.parse_args()


def _plan(args: argparse.Namespace) -> measures.Plan:
    source = args.model or example_model(EXAMPLE)
    model = requantised(source, args.out, "Q4_0")
    return measures.Plan(
        model=model,
        other_types={name: requantised(source, args.out, name) for name in OTHER_TYPES},
        words=word_tokens(model),
        rival=find_rival(),
        threads=tuple(sorted({1, args.threads})),
        requests=QUICK if args.quick else FULL,
        samples=2 if args.quick else 3,
        out=args.out,
        read_rate=machine.build_read_rate(args.out),
    )


def _empty_result(plan: measures.Plan, repeats: int) -> Result:
    result = Result(
        machine=machine.facts(),
        commit=machine.commit(),
        versions=machine.versions(),
        settings={
            "threads": list(plan.threads),
            "streams": list(plan.requests),
            "repeats": repeats,
            "tokens_in": TOKENS_IN,
            "tokens_out": TOKENS_OUT,
            "model": plan.model.name,
            "model_bytes": plan.model.stat().st_size,
        },
        began=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    if plan.rival is not None:
        result.versions["llama.cpp"] = plan.rival.version()
    else:
        result.notes.append(
            "llama-bench and llama-server were neither on the PATH nor built by "
            "hack/build-llama-cpp.sh, so nothing is compared."
        )
    busy = machine.busy_share(1.0)
    if busy > QUIET_SHARE:
        result.notes.append(f"Other work took {busy:.0%} of all cores when this began.")
    return result


def _measure(plan: measures.Plan, result: Result, repeats: int) -> None:
    began = time.monotonic()
    for repeat in range(repeats):
        seconds = time.monotonic() - began
        print(f"{seconds:4.0f} s: repetition {repeat + 1} of {repeats}", flush=True)
        measures.throughput(plan, result, repeat)
        measures.other_types(plan, result, repeat)
        measures.serving(plan, result, repeat)
        measures.stolen_core(plan, result, repeat)
    with tempfile.TemporaryDirectory(dir=plan.out) as folder:
        large = make_large_gguf(Path(folder, "large.gguf"), LARGE_BYTES)
        measures.loading(plan, result, large)


if __name__ == "__main__":
    sys.exit(main())
