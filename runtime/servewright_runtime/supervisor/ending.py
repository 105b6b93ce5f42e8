"""How a run ended: its exit code, and why, for the shell, the kubelet and the log."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from servewright_runtime.errors import ServewrightError

log = logging.getLogger(__name__)

TERMINATION_LOG_VARIABLE = "SERVEWRIGHT_TERMINATION_LOG"
OUT_OF_MEMORY = 137  # what the kubelet shows for a container that the kernel killed

_DEFAULT_TERMINATION_LOG = Path("/dev/termination-log")
_LONGEST_LINE = 4096  # bytes; the kubelet keeps no more


@dataclass(frozen=True, slots=True)
class Ending:
    """exit_code: 0 drained, 2 a configuration that no restart mends, 137 out of memory, 1 else."""

    exit_code: int
    reason: str  # one CamelCase word
    message: str  # one sentence

    @classmethod
    def of(cls, error: ServewrightError) -> Ending:
        """The ending that a user's error makes."""
        return cls(error.exit_code, error.reason, error.message)

    @classmethod
    def of_deaths(cls, dead: Mapping[str, int], driver_code: int | None) -> Ending:
        """The ending that deaths of processes make.

        dead: pids by name, in the order of their ends. The first is the cause, unless the driver
        was killed: the kernel then kills the raylet and the GCS with it, and they, being smaller,
        are gone before it. SIGABRT is Ray's own way for a driver that has lost one of them.
        """
        is_cause = driver_code is not None and driver_code < 0 and driver_code != -signal.SIGABRT
        names = sorted(dead, key=lambda name: not (is_cause and name == "driver"))
        first, *others = (f"{name} (pid {dead[name]})" for name in names)
        then = f"; with it the {', '.join(others)}" if others else ""
        return cls(1, "ProcessDied", f"The {first} ended unexpectedly{then}.")

    def told(self) -> int:
        """Tell the kubelet and the log. Returns the exit code."""
        self.write_termination_message()
        level = logging.INFO if self.exit_code == 0 else logging.ERROR
        log.log(level, self.message, extra={"reason": self.reason, "exit_code": self.exit_code})
        return self.exit_code

    def write_termination_message(self) -> None:
        """Leave {reason, message} as one JSON line where the kubelet, or a test, looks for it."""
        path = Path(os.environ.get(TERMINATION_LOG_VARIABLE, _DEFAULT_TERMINATION_LOG))
        if TERMINATION_LOG_VARIABLE not in os.environ and not path.exists():
            return
        message = self.message
        while len(line := self._line(message)) > _LONGEST_LINE:
            message = message[: len(message) // 2]
        # Nothing to tell anyone who could help: the log has the same words.
        try:
            path.write_bytes(line)
        except OSError:
            return

    def _line(self, message: str) -> bytes:
        return json.dumps({"reason": self.reason, "message": message}).encode() + b"\n"


def oom_kills() -> int | None:
    """Processes that the kernel killed for want of memory in our cgroup; None if it cannot tell."""
    for path in _oom_counters():
        try:
            match = re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE)
        except OSError:
            continue
        if match:
            return int(match[1])
    return None


def _oom_counters() -> list[Path]:
    """Files that may hold the count. Inside a container its own cgroup is mounted as the root."""
    paths = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        base, name = (
            ("/sys/fs/cgroup/memory", "memory.oom_control")
            if "memory" in controllers.split(",")
            else ("/sys/fs/cgroup", "memory.events")
        )
        if controllers and "memory" not in controllers.split(","):
            continue
        paths += [Path(base + group, name), Path(base, name)]
    return paths
