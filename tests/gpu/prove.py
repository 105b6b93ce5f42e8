"""Proves the CUDA half on a device and times it: every op and the step, numbers before times.

    python tests/gpu/prove.py [--out FILE.json] [--numbers] [--small] [--sanitize]

Without a usable device it refuses, in one sentence, with exit status 1: a proof that did not run
is none. So it does without compute-sanitizer where --sanitize asks for it. docs/kernels.md says
what it adds to the emulator's tests.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
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
    from gpu.checks import Check
    from gpu.timings import Timed

# The emulator's tests of the runner, whose device is then the real one.
RUNNER_TESTS = ("tests/unit/cuda/test_runner.py",)
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
NO_CACHING = "PYTORCH_NO_CUDA_MEMORY_CACHING"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all numbers are right, whatever the times are."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write all results there as JSON")
    parser.add_argument("--numbers", action="store_true", help="prove, do not time")
    parser.add_argument("--small", action="store_true", help="the emulator's sizes; no times")
    parser.add_argument(
        "--sanitize", action="store_true", help="first run it, small, under compute-sanitizer"
    )
    options = parser.parse_args(arguments)
    missing = availability.unavailable()
    if missing is not None:
        print(f"Nothing is proved without a CUDA device: {missing}", file=sys.stderr)
        return 1
    if options.sanitize and (status := sanitize()) != 0:
        return status
    is_timed = not (options.numbers or options.small)
    return prove(options.out, is_timed=is_timed, is_small=options.small)


def sanitize() -> int:
    """Run this script at small sizes under each tool of compute-sanitizer; 0 if none objects."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        print(
            "Nothing is sanitized without compute-sanitizer, which is not on PATH; it comes with "
            "the CUDA toolkit.",
            file=sys.stderr,
        )
        return 1
    # Else torch cuts tensors out of larger blocks, and reads beyond their ends are not seen.
    environment = {**os.environ, NO_CACHING: "1"}
    for tool in TOOLS:
        print(f"compute-sanitizer, {tool}", flush=True)
        command = [program, "--tool", tool, "--target-processes", "all", "--error-exitcode", "1"]
        command += [sys.executable, str(Path(__file__).resolve()), "--small"]
        if subprocess.run(command, env=environment).returncode != 0:
            print(f"{tool} found what stands above", file=sys.stderr)
            return 1
    return 0


def prove(out: Path | None, *, is_timed: bool, is_small: bool = False) -> int:
    """On the first device."""
    from gpu import op_numbers, timings
    from servewright_runtime.cuda.device import Gpu

    kernels, device = availability.kernels(), Gpu()
    host = hardware.detect()
    print(f"{device.name}; {host.cpus} CPUs ({host.cpu_name})\n", flush=True)
    sizes = op_numbers.SMALL if is_small else op_numbers.REAL
    checks = list(op_numbers.checks(kernels, device, sizes))
    print(numbers_table(checks))
    wrong = [check for check in checks if not check.is_right]
    print(f"{len(checks)} checks, {len(wrong)} wrong", flush=True)
    for check in wrong:
        print(f"  {check.name}: {check.worst:.3g} of its bound")
    runner = run_runner_tests()
    timed: list[Timed] = []
    rate: float | None = None
    if is_timed and not wrong and runner == 0:
        timed = list(timings.steps(kernels, device))
        rate = timings.copy_rate(device)
        print(timings.table(timed, rate))
    if out is not None:
        document: dict[str, Any] = {
            "commit": commit(),
            "device": device.name,
            "host": dataclasses.asdict(host),
            "numbers": {check.name: check.worst for check in checks},
            "runner": runner,
            "copy_bytes_per_s": rate,
            "times": [dataclasses.asdict(each) for each in timed],
        }
        out.write_text(json.dumps(document, indent=1) + "\n")
    return int(bool(wrong) or runner != 0)


def run_runner_tests() -> int:
    """pytest's exit status. With torch's cache, for the runner captures graphs."""
    environment = {**os.environ, "SERVEWRIGHT_TEST_DEVICE": "cuda"}
    environment["PYTHONPATH"] = ":".join(sys.path[:4])
    environment.pop(NO_CACHING, None)
    command = [sys.executable, "-m", "pytest", "-q", *RUNNER_TESTS]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def commit() -> str | None:
    """Of this checkout, with "-dirty" where a tracked file differs; None where there is no git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None


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
