"""Log lines as JSON and as text."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator

import pytest

from servewright_runtime import logs
from servewright_runtime.errors import ConfigError

LOGGER = logging.getLogger("servewright_runtime.test")


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (logs.LEVEL_VARIABLE, logs.FORMAT_VARIABLE):
        monkeypatch.setenv(name, "")  # so that what `configure` sets is taken back
        monkeypatch.delenv(name)
    loggers = [logging.getLogger(name) for name in (*logs._LOGGERS, logs._QUIET_LOGGER)]
    before = [(one, one.handlers, one.propagate, one.level) for one in loggers]
    yield
    for logger, handlers, propagate, level in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_a_file_or_pipe_gets_one_json_object_a_line() -> None:
    stream = io.StringIO()
    logs.configure(stream)
    LOGGER.info("resolved", extra={"model": "tiny", "kv_blocks": 3, "_ray": 1})
    LOGGER.debug("not shown")
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "event": "resolved",
        "logger": "servewright_runtime.test",
        "model": "tiny",
        "kv_blocks": 3,
    }


def test_a_traceback_stays_on_its_line() -> None:
    stream = io.StringIO()
    logs.configure(stream)
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        LOGGER.exception("failed")
    assert len(stream.getvalue().splitlines()) == 1
    assert "ValueError: first\nsecond" in json.loads(stream.getvalue())["error"]


def test_a_terminal_gets_short_text_from_warnings_on() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    logs.configure(stream)
    LOGGER.info("not shown")
    LOGGER.warning("slow", extra={"seconds": 3})
    LOGGER.error("Port 8000 is in use.", extra={"reason": "PortUnavailable"})
    assert stream.getvalue() == "warning: slow seconds=3\nerror: Port 8000 is in use.\n"


def test_children_log_in_the_form_and_level_that_was_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(logs.LEVEL_VARIABLE, "debug")
    stream = io.StringIO()
    logs.configure(stream)
    LOGGER.debug("shown")
    assert json.loads(stream.getvalue())["event"] == "shown"
    assert os.environ[logs.FORMAT_VARIABLE] == "json"


def test_an_unknown_level_is_refused_with_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.LEVEL_VARIABLE, "loud")
    with pytest.raises(ConfigError, match="DEBUG, INFO, WARNING, ERROR"):
        logs.configure(io.StringIO())
