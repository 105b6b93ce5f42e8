"""Reads pytest's JUnit reports: which tests failed, which were skipped, and whether any had to run.

A skip is allowed for a reason in ALLOWED: one that the machine explains and no change of ours
can, or that says where the test runs.
Any other skip, and a tier without a single test, fails: a tier that silently stops running
proves nothing. The last line is pytest's closing line for all the reports together.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

_COUNTS = ("tests", "failures", "errors", "skipped")  # attributes of a report's <testsuite>
REQUIRED_TIERS = ("unit", "fake", "runtime", "api", "node")  # folders of tests/
# Reasons, as regular expressions over the whole reason.
ALLOWED = (
    r".*this CPU .*",  # a kernel variant that the CPU lacks
    r".*(needs|wants) a CUDA device.*",
    # What is refused without one; where there is one, tests/gpu has more to say.
    r"needs (a machine without a CUDA device|nodes without GPUs)",
    # The compiled kernels; docs/kernels.md says where nvcc is from. nvdisasm the dev extra brings.
    r"needs nvcc 13: (?!and nvdisasm).*",
    r"needs a history .*; this clone is shallow",
    r"make faults runs it",  # the long form of a test whose short one CI runs
)


def verdict(reports: Sequence[str]) -> list[str]:
    """What is wrong, one line each; prints nothing."""
    wrong = []
    ran: Counter[str] = Counter()
    for report in reports:
        # The reports are our own pytest's, so a hostile document is no concern.
        for case in ElementTree.fromstring(report).iter("testcase"):  # noqa: S314
            parts = case.get("classname", "").split(".")
            name = f"{'.'.join(parts)}.{case.get('name')}"
            for problem in (*case.iter("failure"), *case.iter("error")):
                wrong.append(f"{name} failed: {problem.get('message')}")
            skipped = case.find("skipped")
            if skipped is None:
                ran[parts[1] if len(parts) > 1 else ""] += 1
            elif not any(re.fullmatch(p, skipped.get("message", ""), re.DOTALL) for p in ALLOWED):
                wrong.append(f"{name} was skipped: {skipped.get('message')}")
    wrong += [f"no test of tests/{tier} ran" for tier in REQUIRED_TIERS if not ran[tier]]
    return wrong


def closing_line(reports: Sequence[str]) -> str:
    """What pytest would say had it run them all at once."""
    totals: Counter[str] = Counter()
    seconds = 0.0
    for report in reports:
        for suite in ElementTree.fromstring(report).iter("testsuite"):  # noqa: S314 - as above
            totals.update({name: int(suite.get(name, 0)) for name in _COUNTS})
            seconds += float(suite.get("time", 0))
    passed = totals["tests"] - totals["failures"] - totals["errors"] - totals["skipped"]
    told = [(totals["failures"], "failed"), (passed, "passed"), (totals["skipped"], "skipped")]
    told.append((totals["errors"], "errors" if totals["errors"] != 1 else "error"))
    words = ", ".join(f"{count} {word}" for count, word in told if count)
    return f"===== {words or 'no tests ran'} in {seconds:.2f}s ====="


def main(paths: Sequence[str]) -> int:
    """Exit code: 1 if anything is wrong."""
    reports = [Path(path).read_text() for path in paths]
    wrong = verdict(reports)
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    print(closing_line(reports))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
