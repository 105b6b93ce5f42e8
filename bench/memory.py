"""Memory of processes, as the kernel counts it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class TreeMemory:
    """Proportional set sizes in bytes: a page that several processes share counts in parts."""

    largest_process: int  # the one that holds the model
    all_processes: int


def of_tree(root: int) -> TreeMemory:
    """Memory of process `root` and all that descend from it."""
    sizes = []
    for pid in _tree(root):
        with contextlib.suppress(OSError):  # it ended meanwhile
            sizes.append(_kib(PROC / str(pid) / "smaps_rollup", "Pss"))
    return TreeMemory(max(sizes), sum(sizes))


def resident_bytes() -> int:
    """Of this process, now."""
    return _kib(PROC / "self" / "status", "VmRSS")


def peak_bytes() -> int:
    """Of this process, the largest resident size since `reset_peak`."""
    return _kib(PROC / "self" / "status", "VmHWM")


def reset_peak() -> None:
    """Let the peak begin from the present size."""
    (PROC / "self" / "clear_refs").write_text("5")


def _kib(path: Path, name: str) -> int:
    """Bytes of a line "Name:  123 kB"."""
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise LookupError(f"{path} has no {name}")


def _tree(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir(PROC):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = (PROC / entry / "stat").read_text(errors="replace")
                # The command's name stands in parentheses and may itself hold spaces and some.
                parent = int(stat.rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    tree = [root]
    for pid in tree:
        tree += children.get(pid, ())
    return tree
