"""Log lines: JSON, one event a line with its keys, or short text for a person at a terminal.

Prompts and answers are never logged. Ray's own files stay in the run dir.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import TextIO

from servewright_runtime.errors import ConfigError

LEVEL_VARIABLE = "SERVEWRIGHT_LOG_LEVEL"
FORMAT_VARIABLE = "SERVEWRIGHT_LOG_FORMAT"

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_FORMATS = ("json", "text")
_STANDARD_KEYS = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_LOGGERS = ("servewright_runtime", "servewright_api", "servewright")
# Its tracebacks are worth a line, its starts and ends are not.
_QUIET_LOGGER = "uvicorn.error"


class JsonFormatter(logging.Formatter):
    """{"time", "level", "event", "logger", ...extra}, with "error" holding a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            **_extra(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """`level: event key=value ...`; of an event that ends with a full stop the sentence alone."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback if there is one."""
        event = record.getMessage()
        is_sentence = event.endswith(".")
        keys = "" if is_sentence else "".join(f" {k}={v}" for k, v in _extra(record).items())
        line = f"{record.levelname.lower()}: {event}{keys}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure(stream: TextIO | None = None) -> None:
    """Send our log lines to `stream` (stderr). Level and form come from the environment; without
    it, a terminal gets text from WARNING on and anything else JSON from INFO on.

    Raises ConfigError on a level or form that there is not.
    """
    stream = stream or sys.stderr
    form = _choice(FORMAT_VARIABLE, "text" if stream.isatty() else "json", _FORMATS)
    default = "WARNING" if form == "text" else "INFO"
    level = _choice(LEVEL_VARIABLE, default, _LEVELS)
    # What is chosen here holds for the processes started from here.
    os.environ[FORMAT_VARIABLE], os.environ[LEVEL_VARIABLE] = form, level
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    # Not by logging.config: that closes the handlers of others, Ray Serve's among them.
    for name in (*_LOGGERS, _QUIET_LOGGER):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level)
    quiet = logging.getLogger(_QUIET_LOGGER)
    quiet.setLevel(max(logging.WARNING, quiet.level))


def _extra(record: logging.LogRecord) -> dict[str, object]:
    """What the log call gave. Keys with an underscore are Ray's, which adds its own to all."""
    return {
        key: value
        for key, value in vars(record).items()
        if key not in _STANDARD_KEYS and not key.startswith("_")
    }


def _choice(variable: str, default: str, choices: tuple[str, ...]) -> str:
    value = os.environ.get(variable, default)
    for choice in choices:
        if value.lower() == choice.lower():
            return choice
    raise ConfigError(f"{variable} is {value!r}, but must be one of {', '.join(choices)}.")
