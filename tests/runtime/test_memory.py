"""A run that the kernel finds too large says so."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import runs
from support.runs import Run
from support.waiting import eventually

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
TOO_SMALL = 300 << 20  # Ray alone takes over 400 MiB


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A cgroup of TOO_SMALL bytes."""
    if os.access(V1 / "memory.limit_in_bytes", os.R_OK):
        base, limit = V1, "memory.limit_in_bytes"
    else:
        base, limit = V2, "memory.max"
    group = base / f"servewright-test-{uuid.uuid4().hex}"
    try:
        group.mkdir()
        (group / limit).write_text(str(TOO_SMALL))
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    yield group
    # A killed process leaves its cgroup a moment after it has ended.
    eventually(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


def test_a_run_without_enough_memory_ends_with_137(
    start: Callable[..., Run], small_cgroup: Path
) -> None:
    enter = f'echo $$ > {small_cgroup / "cgroup.procs"} && exec "$@"'
    run = start(wrapper=["sh", "-c", enter, "sh"])
    assert run.process.wait(timeout=runs.START_S) == 137
    assert run.termination["reason"] == "OutOfMemory"
    message = run.termination["message"]
    assert "the kernel killed" in message
    # As it was found out: by the kernel's count while Ray starts, or by the death itself.
    assert message.endswith("It was starting.") or "ended unexpectedly" in message
