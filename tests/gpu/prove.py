"""Proves the CUDA half on a device and times it: every op and the step, numbers before times.

    python tests/gpu/prove.py [--out FILE.json] [--numbers]

Without a usable device it refuses, in one sentence, with exit status 1: a proof that did not run
is none. docs/kernels.md says what it adds to the emulator's tests.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
# Run as a file, and of this checkout, whatever is installed.
sys.path[:0] = [str(ROOT), str(ROOT / "operator"), str(ROOT / "runtime"), str(ROOT / "tests")]

from servewright_runtime import hardware  # noqa: E402
from servewright_runtime.cuda import availability  # noqa: E402

if TYPE_CHECKING:
    from gpu.op_numbers import Check
    from gpu.timings import Timed

# The emulator's tests of the runner, whose device is then the real one.
RUNNER_TESTS = ("tests/unit/cuda/test_runner.py",)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all numbers are right, whatever the times are."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write all results there as JSON")
    parser.add_argument("--numbers", action="store_true", help="prove, do not time")
    options = parser.parse_args(arguments)
    missing = availability.unavailable()
    if missing is not None:
        print(f"Nothing is proved without a CUDA device: {missing}", file=sys.stderr)
        return 1
    return prove(options.out, is_timed=not options.numbers)


def prove(out: Path | None, *, is_timed: bool) -> int:
    """On the first device."""
    from gpu import op_numbers, timings
    from servewright_runtime.cuda.device import Gpu

    kernels, device = availability.kernels(), Gpu()
    host = hardware.detect()
    print(f"{device.name}; {host.cpus} CPUs ({host.cpu_name})\n")
    checks = list(op_numbers.checks(kernels, device))
    print(numbers_table(checks))
    wrong = [check for check in checks if not check.is_right]
    print(f"{len(checks)} ops at their sizes, {len(wrong)} wrong")
    for check in wrong:
        print(f"  {check.name}: {check.worst:.3g} of its bound")
    runner = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *RUNNER_TESTS],
        cwd=ROOT,
        env={**os.environ, "SERVEWRIGHT_TEST_DEVICE": "cuda", "PYTHONPATH": ":".join(sys.path[:4])},
    )
    timed: list[Timed] = []
    if is_timed and not wrong and runner.returncode == 0:
        timed = list(timings.steps(kernels, device))
        print(timings.table(timed, device))
    if out is not None:
        document: dict[str, Any] = {
            "device": device.name,
            "host": dataclasses.asdict(host),
            "numbers": {check.name: check.worst for check in checks},
            "runner": runner.returncode,
            "times": [dataclasses.asdict(each) for each in timed],
        }
        out.write_text(json.dumps(document, indent=1) + "\n")
    return int(bool(wrong) or runner.returncode != 0)


def numbers_table(checks: Sequence[Check]) -> str:
    """Markdown: the worst of each op."""
    worst: dict[str, tuple[float, int]] = {}
    for check in checks:
        op = check.name.partition(" ")[0].rstrip(",")
        before, count = worst.get(op, (0.0, 0))
        worst[op] = (max(before, check.worst), count + 1)
    lines = ["| op | sizes | worst error / bound |", "| --- | --- | --- |"]
    lines += [f"| {op} | {count} | {value:.2f} |" for op, (value, count) in worst.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
