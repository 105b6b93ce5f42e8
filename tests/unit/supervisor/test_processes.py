"""Finding and ending the processes of a run, however they try to get out of sight."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator

import pytest

from servewright_runtime.supervisor import processes
from support.runs import is_alive
from support.waiting import eventually

# A process that becomes nobody's child in a session of its own, and tells its pid.
DETACHED = """
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def run_id() -> Iterator[str]:
    made = secrets.token_hex(8)
    yield made
    processes.kill_all(made, None)


def test_a_detached_process_is_found_by_its_environment(run_id: str) -> None:
    pid = _detached({**os.environ, processes.RUN_ID_VARIABLE: run_id})
    assert processes.alive(run_id, None) == [pid]
    assert processes.kill_all(run_id, None) == []
    assert not is_alive(pid)


def test_another_run_is_left_alone(run_id: str) -> None:
    pid = _detached({**os.environ, processes.RUN_ID_VARIABLE: run_id})
    assert processes.alive(run_id[:-1], None) == []
    assert processes.kill_all(run_id + "0", None) == []
    assert is_alive(pid)


def test_a_child_without_an_environment_belongs_to_its_parent(run_id: str) -> None:
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], env={})\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, processes.RUN_ID_VARIABLE: run_id}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert set(processes.alive(run_id, None)) == {parent.pid, child}
        assert processes.kill_all(run_id, None) == []
    assert not is_alive(child)


def test_processes_that_breed_while_being_killed_are_all_killed(run_id: str) -> None:
    script = (
        "import subprocess, sys\n"
        "print(flush=True)\n"
        "while True: subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
    )
    environment = {**os.environ, processes.RUN_ID_VARIABLE: run_id}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as breeder:
        assert breeder.stdout is not None
        breeder.stdout.readline()
        eventually(lambda: len(processes.alive(run_id, None)) > 10)
        assert processes.kill_all(run_id, None) == []
    assert processes.alive(run_id, None) == []


def test_one_that_dies_is_left_until_it_has_ended(run_id: str) -> None:
    """It loses its environment first; here it never ends."""
    pid = _detached({**os.environ, processes.RUN_ID_VARIABLE: run_id})
    carries = iter([True])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(processes, "_carries", lambda of, _: of == pid and next(carries, False))
        patched.setattr(os, "kill", lambda *_: None)
        assert processes.kill_all(run_id, None, timeout_s=0.1) == [pid]


def test_a_name_with_spaces_and_parentheses_confuses_nothing() -> None:
    script = (
        "import pathlib, time\n"
        "pathlib.Path('/proc/self/comm').write_text(') R 1 (x')\n"
        "print(flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as odd:
        assert odd.stdout is not None
        odd.stdout.readline()
        assert processes.find(os.getpid(), {") R 1 (x"}) == {") R 1 (x": odd.pid}
        odd.kill()


def _detached(environment: dict[str, str]) -> int:
    command = [sys.executable, "-c", DETACHED]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        return int(parent.stdout.readline())
