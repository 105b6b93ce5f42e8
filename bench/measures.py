"""What a repetition measures, each part adding its numbers to the result."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine
from bench.client import Measured
from bench.result import BARE, IN_PROCESS, MACHINE, OURS, RIVAL, Result
from bench.rivals import Rival, bare_server, in_process, servewright_run
from bench.servers import Server

# Takes the core that it is told; ends by itself should the bench be killed.
NEIGHBOUR = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
end = time.monotonic() + float(sys.argv[2])
print(flush=True)
while time.monotonic() < end:
    pass
"""
NEIGHBOUR_S = 300
# Long enough for a median over tens of passes, short beside the rest of a repetition.
READ_SECONDS = 0.7


@dataclass(frozen=True)
class Plan:
    """What one run measures, on what."""

    model: Path  # of Q4_0, each engine's best
    other_types: dict[str, Path]  # tensor type -> the model in it, for decode alone
    words: list[int]  # token ids that prompts are made of
    rival: Rival | None
    threads: tuple[int, ...]  # counts for decode and prefill, ascending; servers take the last
    requests: dict[int, int]  # streams -> requests that each of them sends
    samples: int  # of decode and prefill in one repetition
    out: Path  # folder for logs and what is generated
    read_rate: Path  # the compiled read_rate.c

    @property
    def most_threads(self) -> int:
        return self.threads[-1]

    @property
    def most_streams(self) -> int:
        return max(self.requests)


def throughput(plan: Plan, result: Result, repeat: int) -> None:
    """Decode and prefill of one sequence, no HTTP: ours through `Engine`, theirs by llama-bench."""
    for threads in plan.threads:
        for who in _order(plan, repeat):
            if who == OURS:
                _read_rate(plan, result, threads)
            found = _throughput(plan, who, plan.model, threads)
            decode = statistics.median(found["decode"])
            result.add(f"decode_{threads}t_tok_s", who, decode)
            result.add(f"prefill_{threads}t_tok_s", who, statistics.median(found["prefill"]))
            if who == OURS:
                result.versions["kernel"] = found["kernel"]
                # Each token reads every matrix once, the tied head included: the whole file.
                read = decode * plan.model.stat().st_size * 1e-9
                result.add(f"decode_{threads}t_gb_s", OURS, read)


def other_types(plan: Plan, result: Result, repeat: int) -> None:
    """Decode of the other tensor types, as in `throughput`."""
    for tensor_type, model in plan.other_types.items():
        for threads in plan.threads:
            for who in _order(plan, repeat):
                found = _throughput(plan, who, model, threads, decode_only=True)
                metric = f"decode_{tensor_type.lower()}_{threads}t_tok_s"
                result.add(metric, who, statistics.median(found["decode"]))


def _read_rate(plan: Plan, result: Result, threads: int) -> None:
    """Streaming reads from 2 MiB pages, as the weights have: the ceiling of the decode after it."""
    rate = machine.read_rate_gb_s(
        plan.read_rate, threads=threads, huge_pages=True, seconds=READ_SECONDS
    )
    result.add(f"read_{threads}t_gb_s", MACHINE, rate)


def stolen_core(plan: Plan, result: Result, repeat: int) -> None:
    """Decode with all threads while a stranger keeps one core busy, and without."""
    for who in _order(plan, repeat):
        alone = _throughput(plan, who, plan.model, plan.most_threads, decode_only=True)
        with _busy_core():
            disturbed = _throughput(plan, who, plan.model, plan.most_threads, decode_only=True)
        result.add("undisturbed_tok_s", who, statistics.median(alone["decode"]))
        result.add("stolen_tok_s", who, statistics.median(disturbed["decode"]))


def serving(plan: Plan, result: Result, repeat: int) -> None:
    """The loads through HTTP, one server at a time, and the largest load without HTTP."""
    turns = [*_order(plan, repeat), BARE]
    for who in turns:
        server = _server(plan, who)
        if server is None:
            continue
        with server:
            at_start = server.memory()
            server.load(
                plan.words,
                streams=plan.most_streams,
                requests=plan.most_streams,
                seed=_seed(repeat, 0),
            )  # warm-up
            for streams, each in plan.requests.items():
                measured = server.load(
                    plan.words,
                    streams=streams,
                    requests=streams * each,
                    seed=_seed(repeat, streams),
                )
                _add_load(result, who, streams, measured)
            at_end = server.memory()
        result.add("ready_s", who, server.ready_s)
        result.add("ready_memory_bytes", who, at_start.largest_process)
        result.add("loaded_memory_bytes", who, at_end.largest_process)
        result.add("all_memory_bytes", who, at_end.all_processes)
        if who == OURS:
            in_process_load(plan, result, repeat)


def in_process_load(plan: Plan, result: Result, repeat: int) -> None:
    """The largest load, straight into `Engine`."""
    streams = plan.most_streams
    found = in_process(
        "streams",
        plan.model,
        threads=plan.most_threads,
        streams=streams,
        requests=streams * plan.requests[streams],
        seed=_seed(repeat, streams),
    )
    result.add(f"http_{streams}_tok_s", IN_PROCESS, found["tokens_per_s"])
    result.add(f"http_{streams}_ttft_p50_s", IN_PROCESS, found["ttft_p50_s"])


def loading(plan: Plan, result: Result, large: Path) -> None:
    """Memory's rise while a file of 500 MB or more is loaded."""
    found = in_process("loading", large, threads=plan.most_threads)
    result.add("loading_file_bytes", OURS, found["file_bytes"])
    result.add("loading_rise_bytes", OURS, found["rise_bytes"])
    result.add("loading_weights_bytes", OURS, found["weights_bytes"])
    result.add("loading_s", OURS, found["seconds"])


def _order(plan: Plan, repeat: int) -> list[str]:
    """Who is measured, first one then the other first, so that drift hits both alike."""
    who = [OURS, RIVAL] if plan.rival else [OURS]
    return who if repeat % 2 == 0 else who[::-1]


def _throughput(
    plan: Plan, who: str, model: Path, threads: int, *, decode_only: bool = False
) -> dict[str, Any]:
    if who == OURS:
        what = "decode" if decode_only else "throughput"
        return in_process(what, model, threads=threads, repeats=plan.samples)
    assert plan.rival is not None
    return plan.rival.throughput(
        model, threads=threads, repeats=plan.samples, decode_only=decode_only
    )


def _server(plan: Plan, who: str) -> Server | None:
    if who == OURS:
        return servewright_run(plan.model, threads=plan.most_threads, directory=plan.out)
    if who == BARE:
        return bare_server(plan.model, threads=plan.most_threads, directory=plan.out)
    assert plan.rival is not None
    log = plan.out / "llama-server.log"
    return plan.rival.serving(plan.model, threads=plan.most_threads, log=log)


def _add_load(result: Result, who: str, streams: int, measured: Measured) -> None:
    name = f"http_{streams}"
    result.add(f"{name}_tok_s", who, measured.tokens_per_s)
    result.add(f"{name}_ttft_p50_s", who, measured.ttft_p50_s)
    result.add(f"{name}_ttft_p99_s", who, measured.ttft_p99_s)
    result.add(f"{name}_gap_p50_s", who, measured.gap_p50_s)
    result.add(f"{name}_gap_p99_s", who, measured.gap_p99_s)
    result.add("client_cpu_share", who, measured.client_cpu_share)


def _seed(repeat: int, load: int) -> int:
    return 1000 * repeat + load


@contextlib.contextmanager
def _busy_core() -> Iterator[None]:
    """Keep the first of our cores busy with another process."""
    core = min(os.sched_getaffinity(0))
    command = [sys.executable, "-I", "-c", NEIGHBOUR, str(core), str(NEIGHBOUR_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as neighbour:
        assert neighbour.stdout is not None
        neighbour.stdout.readline()  # it says when it has begun
        try:
            yield
        finally:
            neighbour.kill()
