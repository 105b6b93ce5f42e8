"""Fails when a process of this checkout is still running (a test, a Ray process, a run), or a
test cluster that was brought up beside it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 10.0


def left() -> list[str]:
    """Processes that run this checkout's Python, ourselves apart, and nodes of a test cluster."""
    ours = {process.pid for process in psutil.Process().parents()} | {psutil.Process().pid}
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if process.info["pid"] not in ours and str(ROOT / ".venv") in command:
            found.append(f"{process.info['pid']}: {command[:200]}")
    # A node of a test cluster is a network namespace.
    found += [f"the cluster's {path}" for path in Path("/run/netns").glob("servewright*")]
    return found


def main() -> int:
    """Exit code: 1 if any is left after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while (found := left()) and time.monotonic() < deadline:
        time.sleep(0.5)  # others' children: nothing tells when they end
    for line in found:
        print(f"error: left running: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
