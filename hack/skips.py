"""Reads pytest's JUnit report: which tests were skipped, and whether any of them had to run.

A skip is allowed for a reason in ALLOWED: one that the machine explains and no change of ours
can, or that says where the test runs.
Any other skip, and a tier without a single test, fails: a tier that silently stops running
proves nothing.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

REQUIRED_TIERS = ("unit", "fake", "runtime")
# Reasons, as regular expressions over the whole reason.
ALLOWED = (
    r".*this CPU .*",  # a kernel variant that the CPU lacks
    r"needs both back ends of 16 lanes",  # the same: one of them is AVX-512
    r".*(needs|wants) a CUDA device.*",
    r"make faults runs it",  # the long form of a test whose short one CI runs
)


def verdict(report: str) -> list[str]:
    """What is wrong, one line each; prints nothing."""
    wrong = []
    ran: Counter[str] = Counter()
    # The report is our own pytest's, so a hostile document is no concern.
    for case in ElementTree.fromstring(report).iter("testcase"):  # noqa: S314
        parts = case.get("classname", "").split(".")
        name = f"{'.'.join(parts)}.{case.get('name')}"
        skipped = case.find("skipped")
        if skipped is None:
            ran[parts[1] if len(parts) > 1 else ""] += 1
        elif not any(re.fullmatch(p, skipped.get("message", ""), re.DOTALL) for p in ALLOWED):
            wrong.append(f"{name} was skipped: {skipped.get('message')}")
    wrong += [f"no test of tests/{tier} ran" for tier in REQUIRED_TIERS if not ran[tier]]
    return wrong


def main(path: str) -> int:
    """Exit code: 1 if anything is wrong."""
    wrong = verdict(Path(path).read_text())
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
