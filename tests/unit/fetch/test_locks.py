from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from servewright_runtime.fetch.locks import hold, is_held, locked


def test_one_holder_at_a_time_and_many_that_share(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = hold(path)
    assert first is not None
    assert hold(path, wait=False) is None
    assert hold(path, shared=True, wait=False) is None
    assert is_held(path)
    os.close(first)
    assert not is_held(path)
    shared = [hold(path, shared=True, wait=False) for _ in range(2)]
    assert None not in shared
    assert hold(path, wait=False) is None
    for fd in shared:
        assert fd is not None
        os.close(fd)


def test_lock_that_is_not_there_is_made_only_on_request(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        hold(tmp_path / "lock", create=False)
    assert not is_held(tmp_path / "lock")
    assert list(tmp_path.iterdir()) == []


def test_who_waited_for_a_removed_lock_holds_the_new_one(tmp_path: Path) -> None:
    """A holder removes the file at its end; waiters must not all think that they are next."""
    path = tmp_path / "lock"
    inside, worst = 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, worst
        for _ in range(50):
            with locked(path):
                with guard:
                    inside += 1
                    worst = max(worst, inside)
                with guard:
                    inside -= 1
                path.unlink()  # from here on another may hold a new file of that name

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst == 1


def test_lock_is_not_inherited_by_programs_that_are_started(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"):
        fd = hold(tmp_path / "other")
        assert fd is not None
        assert not os.get_inheritable(fd)
        os.close(fd)
