"""From the samples of a bench to the table that people read.

A result is one JSON object (see `Result`); nothing here measures, so an old result renders again.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

OURS = "ours"
RIVAL = "llama.cpp"
BARE = "bare"  # this engine and its HTTP app without Ray
IN_PROCESS = "in-process"  # this engine without HTTP
MACHINE = "machine"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


@dataclass
class Result:
    """All that one bench found.

    samples: metric -> who -> one number a repetition; the numbers of one repetition belong
    together, since they were taken one after the other. Units are in the metric's name.
    """

    machine: dict[str, str]
    commit: str
    versions: dict[str, str]
    settings: dict[str, Any]
    began: str
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, metric: str, who: str, *values: float) -> None:
        """Append what one repetition found."""
        self.samples.setdefault(metric, {}).setdefault(who, []).extend(values)

    def of(self, metric: str, who: str) -> list[float]:
        """The samples, empty if there are none."""
        return self.samples.get(metric, {}).get(who, [])


@dataclass(frozen=True)
class Target:
    """A bound on the median ratio ours / other."""

    ratio: float
    at_least: bool

    def holds(self, ratio: float) -> bool:
        """Whether the ratio reaches the target."""
        return ratio >= self.ratio if self.at_least else ratio <= self.ratio

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.ratio:g}"


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


def rows(threads: Sequence[int], streams: Sequence[int]) -> list[Row]:
    """The table's lines for the thread and stream counts of a result."""

    def against_rival(label: str, metric: str, target: Target | None = None, **kw: Any) -> Row:
        return Row(label, metric, OURS, metric, RIVAL, target=target, **kw)

    table = []
    for what, title in (("decode", "decode, 1 stream"), ("prefill", "prefill 512")):
        for count in threads:
            label = f"{title}, {count} thread{'s' * (count > 1)}, tok/s"
            table.append(against_rival(label, f"{what}_{count}t_tok_s", Target(1.3, True)))
    for count in streams:
        many = f"{count} stream{'s' * (count > 1)}"
        most = count == max(streams)
        rate, ttft = f"http_{count}_tok_s", f"http_{count}_ttft"
        table.append(against_rival(f"HTTP {many}, tok/s", rate, Target(2, True) if most else None))
        table.append(
            against_rival(
                f"HTTP {many}, TTFT p50, ms",
                f"{ttft}_p50_s",
                Target(0.5, False) if most else None,
                scale=1e3,
            )
        )
        table.append(against_rival(f"HTTP {many}, TTFT p99, ms", f"{ttft}_p99_s", scale=1e3))
        gap = f"http_{count}_gap_p50_s"
        table.append(
            against_rival(f"HTTP {many}, token to token p50, ms", gap, scale=1e3, digits=1)
        )
    table += [
        against_rival("start to ready, s", "ready_s", digits=2),
        against_rival(
            "memory when ready, the model's process, MB", "ready_memory_bytes", scale=1e-6
        ),
        against_rival(
            "memory after the loads, same process, MB", "loaded_memory_bytes", scale=1e-6
        ),
        against_rival("memory after the loads, all processes, MB", "all_memory_bytes", scale=1e-6),
    ]
    return table


def own_rows(threads: Sequence[int], streams: Sequence[int]) -> list[Row]:
    """Lines that compare this engine with itself and with the machine."""
    most, many = max(streams), f"{max(streams)} streams"
    rate = f"http_{most}_tok_s"
    table = [
        Row(f"HTTP beside in-process, {many}, tok/s", rate, OURS, rate,
            IN_PROCESS, target=Target(0.9, True)),
        Row(f"HTTP without Ray beside in-process, {many}, tok/s", rate, BARE, rate, IN_PROCESS),
    ]  # fmt: skip
    for count in threads:
        label = f"weights read while decoding beside a streaming read, {count} thread"
        table.append(
            Row(f"{label}{'s' * (count > 1)}, GB/s", f"decode_{count}t_gb_s", OURS,
                f"read_{count}t_gb_s", MACHINE, digits=1)
        )  # fmt: skip
    table += [
        Row("decode with a busy neighbour on one core beside undisturbed, tok/s", "stolen_tok_s",
            OURS, "undisturbed_tok_s", OURS, target=Target(0.45, True)),
        Row("the same, llama.cpp", "stolen_tok_s", RIVAL, "undisturbed_tok_s", RIVAL),
        Row("memory's rise while loading beside packed weights, MB", "loading_rise_bytes", OURS,
            "loading_weights_bytes", OURS, scale=1e-6, target=Target(1.2, False)),
    ]  # fmt: skip
    return table


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
    threads, streams = result.settings["threads"], result.settings["streams"]
    found = []
    for row in rows(threads, streams) + own_rows(threads, streams):
        measured = ratios(result, row)
        if row.target is not None and measured:
            found.append(Verdict(row.label, statistics.median(measured), row.target))
    return found


def render(result: Result) -> str:
    """The whole report as Markdown that also reads well in a terminal."""
    threads, streams = result.settings["threads"], result.settings["streams"]
    main = _table(result, rows(threads, streams), ("this engine", "llama.cpp"))
    own = _table(result, own_rows(threads, streams), ("this", "beside"))
    facts = [f"{name}: {value}" for name, value in result.machine.items()]
    versions = [f"{name} {value}" for name, value in result.versions.items()]
    settings = result.settings
    lines = [
        f"Measured {result.began} at commit {result.commit}: {settings['repeats']} alternating "
        f"repetitions, {settings['tokens_in']} tokens in and {settings['tokens_out']} out a "
        f"request, servers with {max(threads)} threads. Medians, with the smallest and largest "
        "repetition in brackets; a ratio is taken within each repetition.",
        "",
        *main,
        "",
        *own,
        "",
        *[line for note in result.notes for line in (f"- {note}", "")],
        f"Machine: {'; '.join(facts)}.",
        "",
        f"Versions: {'; '.join(versions)}.",
    ]
    return "\n".join(lines) + "\n"


def replace_generated(page: str, report: str) -> str:
    """`page` with its generated part replaced by `report`."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no part between {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{report}{END}{tail}"


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
