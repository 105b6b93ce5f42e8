"""The test of the emulator: each planted bug is found, and by which means.

"plain" is a wrong number or a fault without sanitizers. Where the order of threads or the moment a
copy lands decides whether a bug shows, the table says in which runs it must; the sanitizers must
find theirs in every run.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

import numpy as np
import pytest

from support.emulated import COPIES, ORDERS, Copies, Emulated, Fault, Flavour, Order
from support.planted_bugs import cases, numbers

ALL_RUNS: tuple[tuple[Order, Copies], ...] = tuple(itertools.product(ORDERS, COPIES))
NOT_DOWN = tuple(run for run in ALL_RUNS if run[0] != "down")
LAZY = tuple(run for run in ALL_RUNS if run[1] == "lazy")
EAGER = tuple(run for run in ALL_RUNS if run[1] == "eager")


def verdict(op: str, bug: str, flavour: Flavour, order: Order, copies: Copies) -> str | None:
    """What a run says of the bug; None when it looks right."""
    case = cases()[op]
    try:
        got = Emulated(flavour).run(
            op, case.arrays, {"bug": numbers()[bug]}, order=order, copies=copies
        )
    except Fault as found:
        return str(found)
    for name, wanted in case.wanted.items():
        if not np.allclose(got[name], wanted, rtol=1e-5, atol=1e-5):
            return f"wrong numbers in {name}"
    return None


@pytest.mark.parametrize("op", cases())
def test_without_a_bug_nothing_is_reported(op: str) -> None:
    runs: Iterable[tuple[Flavour, Order, Copies]] = [
        (flavour, order, copies)
        for flavour in ("plain", "asan", "tsan")
        for order, copies in ALL_RUNS
    ]
    for flavour, order, copies in runs:
        assert verdict(op, "NONE", flavour, order, copies) is None, (flavour, order, copies)


WRONG = "wrong numbers"
RACE = r"data race[\s\S]*block \(\d, 0, 0\) thread \d+[\s\S]*a race on byte \d+ of (array|shared)"
PAST_TWO = "index 2 out of bounds"
IN_KERNEL = r"[\s\S]*in kernel {op}_kernel, block \(\d, 0, 0\), thread \d+"
# bug: op, means, runs in which it must be found, what the report says.
Row = tuple[str, str, Flavour, tuple[tuple[Order, Copies], ...], str]
TABLE: list[Row] = [
    ("MISSING_BARRIER", "sum_rows", "plain", NOT_DOWN, WRONG),
    ("MISSING_BARRIER", "sum_rows", "tsan", ALL_RUNS, RACE),
    (
        "DIVERGENT_BARRIER",
        "sum_rows",
        "plain",
        ALL_RUNS,
        r"deadlock in kernel sum_rows_kernel\n  block \(\d, 0, 0\):\n"
        r"    threads 32-63 have ended\n    threads 0-31 wait at barrier \(planted.cu:\d+\)",
    ),
    (
        "BARRIERS_APART",
        "sum_rows",
        "plain",
        ALL_RUNS,
        r"threads that must meet are at different places: thread \d+ at barrier \(planted.cu:\d+\)",
    ),
    ("DIVERGENT_SHUFFLE", "sum_rows", "plain", ALL_RUNS, r"shuffle \(planted.cu:\d+\)"),
    ("GLOBAL_READ_PAST_END", "sum_rows", "plain", ALL_RUNS, "array x" + IN_KERNEL),
    ("GLOBAL_READ_PAST_END", "sum_rows", "asan", ALL_RUNS, "array x" + IN_KERNEL),
    ("GLOBAL_READ_PAST_END", "sum_rows", "tsan", ALL_RUNS, "array x" + IN_KERNEL),
    ("GLOBAL_WRITE_PAST_END", "sum_rows", "plain", ALL_RUNS, "behind the end of array sums"),
    ("GLOBAL_WRITE_PAST_END", "sum_rows", "asan", ALL_RUNS, "array sums" + IN_KERNEL),
    ("SHARED_WRITE_PAST_END", "sum_rows", "plain", ALL_RUNS, "end of shared variable warps"),
    (
        "SHARED_WRITE_PAST_END",
        "sum_rows",
        "asan",
        ALL_RUNS,
        PAST_TWO + IN_KERNEL,
    ),
    ("SHARED_READ_PAST_END", "sum_rows", "asan", ALL_RUNS, PAST_TWO + IN_KERNEL),
    (
        "WRITE_TO_INPUT",
        "sum_rows",
        "plain",
        ALL_RUNS,
        "no access to byte .* of array x" + IN_KERNEL,
    ),
    ("LOST_UPDATE", "sum_rows", "tsan", ALL_RUNS, RACE),
    ("MISSING_BARRIER_BEFORE_TICKET", "sum_columns", "tsan", ALL_RUNS, RACE),
    ("RELAXED_TICKET", "sum_columns", "tsan", ALL_RUNS, RACE),
    (
        "STALE_READ_ONLY_PATH",
        "sum_columns",
        "plain",
        ALL_RUNS,
        r"load_16 \(planted.cu:\d+\) reads byte \d+ of array partials .*, which this launch has"
        r" written" + IN_KERNEL,
    ),
    (
        "READ_ONLY_PATH_TOO_EARLY",
        "sum_columns",
        "plain",
        ALL_RUNS,
        r"load_16 .*reads? .*array partials",
    ),
    ("MISSING_WAIT", "stream_rows", "plain", ALL_RUNS, r"async copies not waited for" + IN_KERNEL),
    ("WEAK_WAIT", "stream_rows", "plain", LAZY, WRONG),
    ("WEAK_WAIT", "stream_rows", "tsan", ALL_RUNS, RACE),
    ("MISSING_BARRIER_AFTER_WAIT", "stream_rows", "plain", ALL_RUNS, WRONG),
    ("MISSING_BARRIER_AFTER_WAIT", "stream_rows", "tsan", ALL_RUNS, RACE),
    ("BUFFER_REUSED_TOO_EARLY", "stream_rows", "plain", ALL_RUNS, WRONG),
    ("BUFFER_REUSED_TOO_EARLY", "stream_rows", "tsan", ALL_RUNS, RACE),
    (
        "COPY_PAST_END",
        "stream_rows",
        "plain",
        ALL_RUNS,
        "out of bounds: byte .* of array x" + IN_KERNEL,
    ),
    ("MISALIGNED_COPY", "stream_rows", "plain", ALL_RUNS, "no multiple of 16" + IN_KERNEL),
    ("MISSING_GRID_BARRIER", "two_phases", "plain", ALL_RUNS, WRONG),
    ("MISSING_GRID_BARRIER", "two_phases", "tsan", ALL_RUNS, RACE),
    ("GRID_BARRIER_WITHOUT_RELEASE", "two_phases", "tsan", ALL_RUNS, RACE),
    (
        "GRID_BARRIER_FOR_TOO_MANY",
        "two_phases",
        "plain",
        ALL_RUNS,
        r"livelock.*two_phases_kernel[\s\S]*block \(0, 0, 0\):\n"
        r"    threads 0 spin in spin_pause \(planted.cu:\d+\)\n    threads 1-31 wait at barrier",
    ),
    ("NOT_RESIDENT", "two_phases", "plain", ALL_RUNS, "one after the other"),
    (
        "MISSING_WAIT_FOR_LAUNCH",
        "square_beside",
        "plain",
        ALL_RUNS,
        "the thread ended without wait_previous_launch" + IN_KERNEL,
    ),
    ("MISSING_WAIT_FOR_LAUNCH", "square_beside", "tsan", ALL_RUNS, RACE),
    ("WAIT_FOR_LAUNCH_TOO_LATE", "square_beside", "plain", ALL_RUNS, WRONG),
    ("WAIT_FOR_LAUNCH_TOO_LATE", "square_beside", "tsan", ALL_RUNS, RACE),
    ("COPY_BEFORE_WAIT_FOR_LAUNCH", "square_beside", "plain", EAGER, WRONG),
    ("COPY_BEFORE_WAIT_FOR_LAUNCH", "square_beside", "tsan", ALL_RUNS, RACE),
    (
        "WRITE_BEFORE_WAIT_FOR_LAUNCH",
        "square_beside",
        "plain",
        ALL_RUNS,
        "array out was written before wait_previous_launch",
    ),
    (
        "READ_ONLY_PATH_ON_PREVIOUS_LAUNCH",
        "square_beside",
        "plain",
        ALL_RUNS,
        r"load_16 \(planted.cu:\d+\) reads byte \d+ of array between .*, which the launch before"
        r" wrote" + IN_KERNEL,
    ),
    (
        "NEXT_LAUNCH_TOO_EARLY",
        "square_beside",
        "plain",
        ALL_RUNS,
        r"let_next_launch \(planted.cu:\d+\) stands before wait_previous_launch",
    ),
    ("MISSING_WARP_BARRIER", "rotate_warp", "plain", ALL_RUNS, WRONG),
    ("MISSING_WARP_BARRIER", "rotate_warp", "tsan", ALL_RUNS, RACE),
    ("SHUFFLE_AS_BARRIER", "rotate_warp", "tsan", ALL_RUNS, RACE),
    ("WRONG_FRAGMENT", "multiply", "plain", ALL_RUNS, WRONG),
    ("MISALIGNED_VECTOR", "multiply", "plain", ALL_RUNS, "no multiple of 16" + IN_KERNEL),
]


def row_name(row: Row) -> str:
    return f"{row[0].lower()}-{row[2]}"


@pytest.mark.parametrize("row", TABLE, ids=row_name)
def test_a_planted_bug_is_found(row: Row) -> None:
    bug, op, flavour, runs, says = row
    for order, copies in runs:
        found = verdict(op, bug, flavour, order, copies)
        assert found, f"not found in order {order}, copies {copies}"
        assert re.search(says.replace("{op}", op), found), found


def test_every_planted_bug_is_in_the_table() -> None:
    assert {row[0] for row in TABLE} == set(numbers()) - {"NONE"}
