"""A picture of a bench: how many times as fast as llama.cpp this engine is, row by row.

Plain SVG, written here, so that drawing needs nothing installed. Times are turned round, so that
further right is always better.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from bench.report import ratios, rows
from bench.result import Result

WIDTH, LEFT, RIGHT, TOP, BOTTOM, ROW = 860, 230, 60, 60, 48, 24
# Shown at least, so that "as fast" is always in the picture.
LEAST_RANGE = (0.8, 4.0)
GOOD, SHORT, GREY, PALE = "#2f6fb5", "#c8761b", "#666666", "#dddddd"


@dataclass(frozen=True)
class Line:
    """One row of the picture. All numbers are this engine's speed in llama.cpp's."""

    label: str
    speeds: Sequence[float]  # one a repetition
    target: float | None

    @property
    def median(self) -> float:
        return statistics.median(self.speeds)


def lines(result: Result) -> list[Line]:
    """Decode, prefill and HTTP's rate and time to first token, as far as they were compared."""
    found = []
    for row in rows(result):
        is_rate = row.metric.endswith("_tok_s")
        speeds = [ratio if is_rate else 1 / ratio for ratio in ratios(result, row)]
        if not speeds or not (is_rate or row.metric.endswith("_ttft_p50_s")):
            continue
        target = row.target.ratio if row.target is not None else None
        if target is not None and not is_rate:
            target = 1 / target
        found.append(Line(row.label.removesuffix(", ms"), speeds, target))
    return found


def draw(result: Result) -> str:
    """The picture as SVG text."""
    drawn = lines(result)
    values = [value for line in drawn for value in (*line.speeds, line.target or 1.0)]
    low, high = min([LEAST_RANGE[0], *values]), max([LEAST_RANGE[1], *values]) * 1.05
    bottom = TOP + ROW * len(drawn)

    def x(speed: float) -> float:
        share = math.log(speed / low) / math.log(high / low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    height = bottom + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(16, 26, "Times as fast as llama.cpp: same file, same threads, same run", size=16),
        _text(16, 46, f"{result.began}, commit {result.commit}", fill=GREY),
    ]
    for power in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1):
        at = x(2.0**power)
        parts.append(_stroke(at, TOP, at, bottom, GREY if power == 0 else PALE))
        parts.append(_text(at, bottom + 16, f"{2.0**power:g}x", anchor="middle", fill=GREY))
    for index, line in enumerate(drawn):
        parts += _row(line, TOP + ROW * (index + 0.5), x)
    legend = "bar: median; dots: repetitions; black: target; orange: target missed"
    parts.append(_text(16, bottom + 38, legend, fill=GREY))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _row(line: Line, y: float, x: Callable[[float], float]) -> list[str]:
    colour = GOOD if line.target is None or line.median >= line.target else SHORT
    left, right = sorted((x(1.0), x(line.median)))
    parts = [
        _text(LEFT - 10, y + 4, line.label, anchor="end"),
        f'<rect x="{left:.1f}" y="{y - 7:.1f}" width="{right - left:.1f}" height="14" '
        f'fill="{colour}"/>',
    ]
    parts += [
        f'<circle cx="{x(speed):.1f}" cy="{y:.1f}" r="2.5" fill="#ffffff" stroke="#333333"/>'
        for speed in line.speeds
    ]
    if line.target is not None:
        parts.append(_stroke(x(line.target), y - 10, x(line.target), y + 10, "#000000", width=3))
    beyond = max(map(x, (*line.speeds, line.target or 1.0)))
    return [*parts, _text(beyond + 8, y + 4, f"{line.median:.2f}")]


def _stroke(x1: float, y1: float, x2: float, y2: float, colour: str, *, width: int = 1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"/>'
    )


def _text(
    x: float, y: float, words: str, *, anchor: str = "start", fill: str = "#000000", size: int = 12
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" '
        f'font-size="{size}">{escape(words)}</text>'
    )
