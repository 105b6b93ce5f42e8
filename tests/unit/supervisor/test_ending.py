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


DRIVER_FIRST = "The driver (pid 1) ended unexpectedly; with it the raylet (pid 2), GCS (pid 3)."
RAYLET_FIRST = "The raylet (pid 2) ended unexpectedly; with it the GCS (pid 3), driver (pid 1)."


@pytest.mark.parametrize(
    ("driver_code", "message"),
    [
        pytest.param(-9, DRIVER_FIRST, id="a driver that was killed takes them with it"),
        pytest.param(-11, DRIVER_FIRST, id="one that crashed does too"),
        pytest.param(1, RAYLET_FIRST, id="one that ended after them is not the cause"),
        pytest.param(-6, RAYLET_FIRST, id="nor one that gave up after them"),
        pytest.param(None, RAYLET_FIRST, id="the order counts otherwise"),
    ],
)
def test_of_several_deaths_the_cause_is_named_first(driver_code: int | None, message: str) -> None:
    dead = {"raylet": 2, "GCS": 3, "driver": 1}
    assert Ending.of_deaths(dead, driver_code) == Ending(1, "ProcessDied", message)


def test_a_single_death_is_one_sentence() -> None:
    ending = Ending.of_deaths({"replica": 7}, None)
    assert ending.message == "The replica (pid 7) ended unexpectedly."
