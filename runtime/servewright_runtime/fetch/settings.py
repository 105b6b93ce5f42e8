"""Bounds of fetching that the environment may set."""

from __future__ import annotations

from collections.abc import Mapping

from servewright_runtime.errors import ConfigError

DEFAULT_MAX_MODEL_BYTES = 100 << 30


def max_model_bytes(environ: Mapping[str, str]) -> int:
    """The largest file that is downloaded: SERVEWRIGHT_MAX_MODEL_BYTES, 100 GiB unless set."""
    return bytes_setting(environ, "SERVEWRIGHT_MAX_MODEL_BYTES", DEFAULT_MAX_MODEL_BYTES)


def bytes_setting(environ: Mapping[str, str], name: str, default: int) -> int:
    """A number of bytes from the environment. Raises ConfigError on anything else."""
    text = environ.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ConfigError(f"{name} is {text!r}, but a number of bytes above 0 is needed.")
    return int(text)
