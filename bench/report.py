"""From the samples of a bench to the table that people read.

Nothing here measures, so an old result renders again.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.loads import OTHER_TYPES
from bench.result import BARE, IN_PROCESS, MACHINE, OURS, RIVAL, Result


@dataclass(frozen=True)
class Target:
    """A bound on the median ratio ours / other."""

    ratio: float
    at_least: bool

    def holds(self, ratio: float) -> bool:
        """Whether the ratio reaches the target."""
        return ratio >= self.ratio if self.at_least else ratio <= self.ratio

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.ratio:.3g}"


# Of one thread, by the kernels that run.
DECODE_TARGETS = {"amx": Target(1.5, True), "avx512": Target(1.5, True), "avx2": Target(1.6, True)}
DECODE_THREADS_TARGET = Target(1.8, True)  # more threads than one
OTHER_TYPES_TARGET = Target(1.4, True)
READ_TARGET = Target(0.85, True)  # one thread
PREFILL_TARGET = Target(2, True)
RATE_TARGET, TTFT_TARGET = Target(2.8, True), Target(1 / 3, False)
HTTP_TARGET = Target(0.9, True)
NEIGHBOUR_TARGET = Target(0.5, True)
LOADING_TARGET = Target(1.2, False)


@dataclass(frozen=True)
class Row:
    """One line of the table: `numerator` beside `denominator` of a metric."""

    label: str
    metric: str
    numerator: str
    other_metric: str
    denominator: str
    scale: float = 1.0
    digits: int = 0
    target: Target | None = None


@dataclass(frozen=True)
class Verdict:
    """A row that has a target, measured."""

    label: str
    ratio: float
    target: Target

    @property
    def holds(self) -> bool:
        return self.target.holds(self.ratio)


def rows(result: Result) -> list[Row]:
    """This engine beside llama.cpp, for the thread and stream counts of a result."""
    threads, streams = result.settings["threads"], result.settings["streams"]
    one_thread = DECODE_TARGETS.get(result.versions.get("kernel", ""))
    table = []
    for count in threads:
        target = one_thread if count == 1 else DECODE_THREADS_TARGET
        label = f"decode Q4_0, {_counted(count, 'thread')}, tok/s"
        table.append(_rival_row(label, f"decode_{count}t_tok_s", target=target))
    for name in OTHER_TYPES:
        for count in threads:
            label = f"decode {name}, {_counted(count, 'thread')}, tok/s"
            metric = f"decode_{name.lower()}_{count}t_tok_s"
            table.append(_rival_row(label, metric, target=OTHER_TYPES_TARGET))
    for count in threads:
        label = f"prefill 512, {_counted(count, 'thread')}, tok/s"
        table.append(_rival_row(label, f"prefill_{count}t_tok_s", target=PREFILL_TARGET))
    for count in streams:
        title, metric = f"HTTP {_counted(count, 'stream')}", f"http_{count}"
        most = count == max(streams)
        rate, ttft = (RATE_TARGET, TTFT_TARGET) if most else (None, None)
        table += [
            _rival_row(f"{title}, tok/s", f"{metric}_tok_s", target=rate),
            _rival_row(f"{title}, TTFT p50, ms", f"{metric}_ttft_p50_s", scale=1e3, target=ttft),
            _rival_row(f"{title}, TTFT p99, ms", f"{metric}_ttft_p99_s", scale=1e3),
            _rival_row(
                f"{title}, token to token p50, ms", f"{metric}_gap_p50_s", scale=1e3, digits=1
            ),
            _rival_row(
                f"{title}, token to token p99, ms", f"{metric}_gap_p99_s", scale=1e3, digits=1
            ),
        ]
    for label, metric in (
        ("memory when ready, the model's process, MB", "ready_memory_bytes"),
        ("memory after the loads, same process, MB", "loaded_memory_bytes"),
        ("memory after the loads, all processes, MB", "all_memory_bytes"),
    ):
        table.append(_rival_row(label, metric, scale=1e-6))
    table.append(_rival_row("start to ready, s", "ready_s", digits=2))
    return table


def own_rows(result: Result) -> list[Row]:
    """This engine beside itself and the machine."""
    threads, streams = result.settings["threads"], result.settings["streams"]
    many, rate = _counted(max(streams), "stream"), f"http_{max(streams)}_tok_s"
    table = [
        Row(f"HTTP / in-process, {many}, tok/s", rate, OURS, rate, IN_PROCESS, target=HTTP_TARGET),
        Row(f"HTTP without Ray / in-process, {many}, tok/s", rate, BARE, rate, IN_PROCESS),
        Row("start to ready / without Ray, s", "ready_s", OURS, "ready_s", BARE, digits=2),
    ]
    for count in threads:
        title = f"bytes decoding reads / streaming read, {_counted(count, 'thread')}, GB/s"
        ours, machine = f"decode_{count}t_gb_s", f"read_{count}t_gb_s"
        target = READ_TARGET if count == 1 else None
        table.append(Row(title, ours, OURS, machine, MACHINE, digits=1, target=target))
    title = "decode with a busy neighbour / undisturbed, "
    stolen, alone = "stolen_tok_s", "undisturbed_tok_s"
    rise, packed = "loading_rise_bytes", "loading_weights_bytes"
    table += [
        Row(f"{title}tok/s", stolen, OURS, alone, OURS, target=NEIGHBOUR_TARGET),
        Row(f"{title}llama.cpp, tok/s", stolen, RIVAL, alone, RIVAL),
        Row(
            "memory's rise while loading / packed weights, MB",
            rise,
            OURS,
            packed,
            OURS,
            scale=1e-6,
            target=LOADING_TARGET,
        ),
    ]
    return table


def _rival_row(
    label: str, metric: str, *, scale: float = 1, digits: int = 0, target: Target | None = None
) -> Row:
    return Row(label, metric, OURS, metric, RIVAL, scale, digits, target)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def ratios(result: Result, row: Row) -> list[float]:
    """Ratio of each repetition. One that lacks a partner is left out."""
    pairs = zip(
        result.of(row.metric, row.numerator),
        result.of(row.other_metric, row.denominator),
        strict=False,
    )
    return [ours / other for ours, other in pairs]


def verdicts(result: Result) -> list[Verdict]:
    """Every target that this result says something about."""
    found = []
    for row in rows(result) + own_rows(result):
        measured = ratios(result, row)
        if row.target is not None and measured:
            found.append(Verdict(row.label, statistics.median(measured), row.target))
    return found


def render(result: Result) -> str:
    """The whole report as Markdown that also reads well in a terminal."""
    main = _table(result, rows(result), ("this engine", "llama.cpp"))
    own = _table(result, own_rows(result), ("first", "second"))
    facts = [f"{name}: {value}" for name, value in result.machine.items()]
    versions = [f"{name} {value}" for name, value in result.versions.items()]
    settings = result.settings
    lines = [
        f"Measured {result.began} at commit {result.commit}: {settings['repeats']} alternating "
        f"repetitions, {settings['tokens_in']} tokens in and {settings['tokens_out']} out a "
        f"request, servers with {max(settings['threads'])} threads. Medians, with the smallest "
        "and largest repetition in brackets; a ratio is taken within each repetition.",
        "",
        *main,
        "",
        *own,
        "",
        *[line for note in _notes(result) for line in (f"- {note}", "")],
        f"Machine: {'; '.join(facts)}.",
        "",
        f"Versions: {'; '.join(versions)}.",
    ]
    return "\n".join(lines) + "\n"


def _notes(result: Result) -> list[str]:
    shares = result.samples.get("client_cpu_share", {})
    most = max((max(of) for of in shares.values()), default=None)
    client = [] if most is None else [f"The load client took at most {most:.1%} of a core."]
    return result.notes + client


def _table(result: Result, table: Sequence[Row], heads: tuple[str, str]) -> list[str]:
    cells = [["", *heads, "ratio", "target", ""]]
    for row in table:
        ours = result.of(row.metric, row.numerator)
        if not ours:
            continue
        other = result.of(row.other_metric, row.denominator)
        measured = ratios(result, row)
        verdict = ""
        if row.target is not None and measured:
            verdict = "yes" if row.target.holds(statistics.median(measured)) else "NO"
        number = _formatter(row.scale, row.digits)
        cells.append(
            [
                row.label,
                _spread(ours, number),
                _spread(other, number),
                _spread(measured, lambda value: f"{value:.2f}"),
                str(row.target or ""),
                verdict,
            ]
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [lines[0], rule, *lines[1:]]


def _formatter(scale: float, digits: int) -> Callable[[float], str]:
    return lambda value: f"{value * scale:,.{digits}f}"


def _spread(values: Sequence[float], number: Callable[[float], str]) -> str:
    if not values:
        return "-"
    median = number(statistics.median(values))
    if len(values) == 1:
        return median
    return f"{median} ({number(min(values))}..{number(max(values))})"
