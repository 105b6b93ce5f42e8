"""The termination message and the count of processes that the kernel killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from servewright_runtime.errors import ConfigError
from servewright_runtime.supervisor.ending import Ending, oom_kills


def test_the_termination_message_is_one_line_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "termination"
    monkeypatch.setenv("SERVEWRIGHT_TERMINATION_LOG", str(path))
    Ending.of(ConfigError("No such file:\n/models/x.gguf.")).write_termination_message()
    (line,) = path.read_text().splitlines()
    assert json.loads(line) == {
        "reason": "InvalidConfiguration",
        "message": "No such file:\n/models/x.gguf.",
    }


def test_a_long_message_fits_the_4096_bytes_that_the_kubelet_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "termination"
    monkeypatch.setenv("SERVEWRIGHT_TERMINATION_LOG", str(path))
    Ending(1, "Failed", "🦙" * 10_000).write_termination_message()
    assert len(path.read_bytes()) <= 4096
    assert json.loads(path.read_text())["message"].startswith("🦙")


def test_a_termination_log_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVEWRIGHT_TERMINATION_LOG", str(tmp_path / "missing" / "termination"))
    Ending(1, "Failed", "words").write_termination_message()


def test_this_machine_counts_oom_kills_or_says_that_it_cannot() -> None:
    count = oom_kills()
    assert count is None or count >= 0
