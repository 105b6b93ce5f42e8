"""Where a bench ran: CPU, memory, versions, commit, and how fast this memory can be read."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

from bench.servers import BenchFailed

from servewright_api.version import __version__
from servewright_runtime import hardware

ROOT = Path(__file__).resolve().parents[1]
# What lscpu calls them; all that a reader needs to place the numbers.
LSCPU_FIELDS = (
    "Model name",
    "CPU family",
    "Model",
    "CPU(s)",
    "Thread(s) per core",
    "L1d cache",
    "L2 cache",
    "L3 cache",
    "Hypervisor vendor",
)
# Instruction sets that decide which kernels run.
FLAGS = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"),
    "amx_int8",
)
# Several times any last-level cache.
READ_BYTES = 1 << 29
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def facts() -> dict[str, str]:
    """The machine, for people."""
    listed = {
        key.strip(): value.strip()
        for line in _output(["lscpu"]).splitlines()
        for key, _, value in [line.partition(":")]
    }
    flags = set(listed.get("Flags", "").split())
    found = hardware.detect()
    return {
        **{name: listed[name] for name in LSCPU_FIELDS if name in listed},
        "Instruction sets": " ".join(flag for flag in FLAGS if flag in flags),
        "Usable CPUs": str(found.cpus),
        "Memory": f"{found.memory_bytes / 2**30:.1f} GiB",
        "Kernel": platform.release(),
        "Huge pages": HUGE_PAGES.read_text().strip() if HUGE_PAGES.exists() else "none",
    }


def versions() -> dict[str, str]:
    """What was measured with, this engine's side."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    first_line = _output([compiler, "--version"]).splitlines()[:1] if compiler else []
    return {
        "servewright": __version__,
        "Python": platform.python_version(),
        **{
            name: importlib.metadata.version(name)
            for name in ("ray", "uvicorn", "starlette", "numpy")
        },
        "compiler": "".join(first_line),
    }


def commit() -> str:
    """The commit, with a plus when tracked files differ from it."""
    name = _output(["git", "rev-parse", "--short=12", "HEAD"]).strip() or "unknown"
    changed = _output(["git", "status", "--porcelain", "--untracked-files=no"]).strip()
    # The page that this bench writes is no part of what it measures.
    others = [line for line in changed.splitlines() if not line.endswith("docs/performance.md")]
    return f"{name}+" if others else name


def build_read_rate(directory: Path) -> Path:
    """Compile read_rate.c for this CPU."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise BenchFailed("no C compiler is on the PATH; install one (Debian: gcc)")
    program = directory / "read_rate"
    source = ROOT / "bench" / "read_rate.c"
    options = ["-O3", "-march=native", "-pthread"]
    subprocess.run([compiler, *options, str(source), "-o", str(program)], check=True)
    return program


def read_rate_gb_s(program: Path, *, threads: int, huge_pages: bool, seconds: float) -> float:
    """Median rate of streaming reads, all threads together."""
    words = [READ_BYTES, threads, int(huge_pages), seconds]
    median, _, _ = _output([str(program), *map(str, words)]).split()
    return float(median)


def busy_share(seconds: float) -> float:
    """Share of all cores' time that others took while this process slept, stolen time included."""
    before = _cpu_times()
    time.sleep(seconds)
    total, idle = (b - a for a, b in zip(before, _cpu_times(), strict=True))
    return 1 - idle / total


def _cpu_times() -> tuple[int, int]:
    """Ticks of all cores: in all, and idle ones."""
    with open("/proc/stat") as f:
        ticks = [int(word) for word in f.readline().split()[1:9]]  # user ... steal
    return sum(ticks), ticks[3] + ticks[4]


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout
