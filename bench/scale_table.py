"""What `make scale` measured, and its table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Found:
    """What one run measured; times in seconds of the wall."""

    services: int
    bare_s: list[float] = field(default_factory=list)  # before the operator, and after it
    bare_writes: int = 0
    operator_s: float = 0.0
    operator_writes: dict[str, int] = field(default_factory=dict)
    operator_cpu_s: float = 0.0
    events_s: float = 0.0  # until every Event was posted too
    rss_mb: float = 0.0
    restart_s: float = 0.0
    restart_writes: dict[str, int] = field(default_factory=dict)
    restart_cpu_s: float = 0.0
    restart_rss_mb: float = 0.0
    edits_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    found: str
    target: str = ""
    holds: bool | None = None

    def __str__(self) -> str:
        verdict = "" if self.holds is None else "yes" if self.holds else "no"
        return f"| {self.what} | {self.found} | {self.target} | {verdict} |"


def _memory(what: str, mb: float) -> Row:
    return Row(what, f"{mb:.0f} MB", "<= 250 MB", mb <= 250)


def render(found: Found, result: dict[str, Any]) -> str:
    """The table, as Markdown that also reads well in a terminal."""
    edits = sorted(found.edits_s)
    middle, last = edits[len(edits) // 2], edits[-1 - len(edits) // 100]
    bare = sum(found.bare_s) / len(found.bare_s)
    ratio = found.operator_s / bare
    count, writes = found.services, sum(found.operator_writes.values())
    again = sum(found.restart_writes.values())
    rows = [
        Row(
            f"bare client: {count:,} applied before the operator's, and after",
            ", ".join(f"{each:.1f} s" for each in found.bare_s),
        ),
        Row(f"operator: {count:,} applied, every status right", f"{found.operator_s:.1f} s"),
        Row(
            "the operator's time in the bare client's mean", f"{ratio:.2f}", "<= 1.3", ratio <= 1.3
        ),
        Row("the same until every Event is posted too", f"{found.events_s:.1f} s"),
        Row("writes of the bare client, of the operator", f"{found.bare_writes:,}, {writes:,}"),
        Row("CPU time of the operator", f"{found.operator_cpu_s:.1f} s"),
        _memory("most memory of the operator", found.rss_mb),
        Row(
            f"restart with {count:,} known: settled",
            f"{found.restart_s:.1f} s",
            "<= 10 s",
            found.restart_s <= 10,
        ),
        Row("restart: writes", f"{again}", "0", again == 0),
        Row("restart: CPU time", f"{found.restart_cpu_s:.1f} s"),
        _memory("restart: most memory", found.restart_rss_mb),
        Row(f"one edit among {count:,} to its Deployment, median", f"{middle * 1000:.0f} ms"),
        Row(
            f"the same, 99th percentile of {len(edits)}",
            f"{last * 1000:.0f} ms",
            "<= 1000 ms",
            last <= 1,
        ),
    ]
    facts = "; ".join(f"{name}: {value}" for name, value in result["machine"].items())
    lines = [
        f"Measured {result['began']} at commit {result['commit']}, one run.",
        "",
        "| what | found | target | |",
        "| --- | --- | --- | --- |",
        *(str(row) for row in rows),
        "",
        f"Machine: {facts}.",
    ]
    return "\n".join(lines) + "\n"
