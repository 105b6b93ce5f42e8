"""What this process may use of the machine: CPUs and memory, read here and nowhere else.

A container sees the host's /proc, so the cgroup's quota and limit (v1 and v2) are read besides
the affinity mask and the physical memory; the smallest number counts.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# v1 writes "no limit" as a huge number of pages instead of a word.
_V1_NO_LIMIT_BYTES = 1 << 60


@dataclass(frozen=True, slots=True)
class Hardware:
    """CPUs and memory that this process may use."""

    cpus: int  # affinity mask and cgroup quota, rounded down, at least 1
    memory_bytes: int  # physical memory or the cgroup's limit
    machine: str  # "x86_64", "aarch64"
    system: str  # "Linux", "Darwin", "Windows"
    cpu_name: str  # as the CPU calls itself; the machine where it does not


def detect(root: Path = Path("/")) -> Hardware:
    """Read it all. `root` is the folder that holds proc and sys; tests give their own."""
    machine, system = platform.machine(), platform.system()
    affinity = len(os.sched_getaffinity(0)) if system == "Linux" else os.cpu_count() or 1
    quota = cpu_quota(root)
    limit = memory_limit_bytes(root)
    physical = physical_memory_bytes(root)
    return Hardware(
        cpus=max(1, min(affinity, int(quota))) if quota is not None else affinity,
        memory_bytes=min(physical, limit) if limit is not None else physical,
        machine=machine,
        system=system,
        cpu_name=_cpu_name(root) or machine,
    )


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that the cgroup and its parents grant, None where nothing bounds it."""
    quotas = []
    for folder in _cgroup_folders(root, ""):  # v2: "max 100000" or "150000 100000"
        words = _read(folder / "cpu.max").split()
        if len(words) == 2 and words[0].isdecimal():
            quotas.append(int(words[0]) / int(words[1]))
    for folder in _cgroup_folders(root, "cpu"):  # v1: -1 is no quota
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """Memory that the cgroup and its parents allow, None where nothing bounds it."""
    texts = [_read(folder / "memory.max") for folder in _cgroup_folders(root, "")]
    texts += [_read(f / "memory.limit_in_bytes") for f in _cgroup_folders(root, "memory")]
    limits = [int(text) for text in texts if text.isdecimal()]
    return min((limit for limit in limits if limit < _V1_NO_LIMIT_BYTES), default=None)


def physical_memory_bytes(root: Path = Path("/")) -> int:
    """MemTotal of /proc/meminfo; what sysconf says where there is no /proc."""
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's cgroup, innermost first; "" is the unified (v2) hierarchy.

    Inside a container the path in /proc/self/cgroup may be the host's and not exist here: the
    mount's root, which is then the container's own cgroup, comes last and always.
    """
    mount = root / "sys/fs/cgroup" / controller
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            inner = Path(path.lstrip("/"))
            yield from (mount / part for part in (inner, *inner.parents) if part != Path("."))
            break
    yield mount


def _cpu_name(root: Path) -> str:
    for line in _read(root / "proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return ""


def _read(path: Path) -> str:
    """The file's text, stripped; empty where it cannot be read (another cgroup version)."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
