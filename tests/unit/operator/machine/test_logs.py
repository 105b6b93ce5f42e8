"""Logs are lines of JSON."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from servewright_operator import logs


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, factory = root.handlers[:], root.level, logging.getLogRecordFactory()
    root.handlers = []
    logging.setLogRecordFactory(logging.LogRecord)  # Ray's, where a test took it in, adds a key
    yield
    logging.setLogRecordFactory(factory)
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def test_a_record_is_one_line_with_the_keys_it_was_given() -> None:
    stream = io.StringIO()
    logs.start("info", stream)
    logging.getLogger("mine").info("applied %d", 3, extra={"key": "default/m"})
    logging.getLogger("mine").debug("not told")
    (line,) = stream.getvalue().splitlines()
    told = json.loads(line)
    assert told.pop("time").endswith("+00:00")
    assert told == {
        "level": "info",
        "logger": "mine",
        "event": "applied 3",
        "key": "default/m",
    }


def test_an_exception_stays_in_its_line() -> None:
    stream = io.StringIO()
    logs.start("info", stream)
    try:
        raise ValueError("one\ntwo")
    except ValueError:
        logging.getLogger("mine").exception("failed")
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: one\ntwo" in json.loads(line)["exception"]


def test_kopf_speaks_from_warnings_on() -> None:
    stream = io.StringIO()
    logs.start("info", stream)
    logging.getLogger("kopf.objects").info("not told")
    logging.getLogger("kopf.objects").warning("told")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["told"]
