"""One call of the operator's, and what its answer means.

Three things are told apart: the revision that was asked for answered as it should; something else
answered, or nothing; the operator itself could not ask. Keys go into requests and nowhere else.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
from typing import Any, Literal, NamedTuple

import aiohttp

from servewright_operator.objects import Object, Probe
from servewright_operator.reading import objects, text

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 5.0
_STATE_TIMEOUT_S = 5.0
_MAX_BODY = 256 * 1024
_MAX_SHOWN = 200  # characters of an answer that are shown
_EXPECT_TOKENS = 32  # what the manifest's schema promises for `expect`

# The operator's own trouble: it says nothing about the service.
_OWN_ERRORS = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.EADDRNOTAVAIL,
    errno.ENETDOWN,
    errno.ENETUNREACH,
}


class Answer(NamedTuple):
    """What came of a call. revision: that answered, empty where none did."""

    result: Literal["Succeeded", "Failed", "Unknown"]
    reason: str
    message: str
    revision: str = ""


def session() -> aiohttp.ClientSession:
    """For calls: a connection each, so that each may come to another pod, and no proxy."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(connector=connector, trust_env=False)


async def call(calls: aiohttp.ClientSession, probe: Probe) -> Answer:
    """Complete the probe's prompt through the Service."""
    try:
        async with asyncio.timeout(probe.timeout_s):
            return await _complete(calls, probe)
    except TimeoutError:
        return Answer("Failed", "TimedOut", f"No answer came within {probe.timeout_s:g} s.")
    except (aiohttp.ClientError, OSError) as error:
        return _not_answered(error, probe.url)
    except Exception as error:  # a mistake of ours: the service is not to blame
        log.exception("probe failed to run", extra={"url": probe.url})
        return Answer("Unknown", "InternalError", _short(f"The operator failed: {error!r}."))


async def state(calls: aiohttp.ClientSession, url: str) -> Object | None:
    """What a pod's supervisor tells at `url`; None where it tells nothing."""
    try:
        async with (
            asyncio.timeout(_STATE_TIMEOUT_S),
            calls.get(url, allow_redirects=False) as response,
        ):
            told = _json(await _read(response)) if response.status == 200 else None
    except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
        log.debug("no state", extra={"url": url, "error": repr(error)})
        return None
    return told if isinstance(told, dict) else None


async def _complete(calls: aiohttp.ClientSession, probe: Probe) -> Answer:
    tokens = 1 if probe.expect is None else _EXPECT_TOKENS
    body: Object = {"model": probe.model, "prompt": probe.prompt, "temperature": 0}
    status, revision, got = await _post(calls, probe, {**body, "max_tokens": tokens})
    if status == 400:  # fewer tokens may be allowed; the server knows how many
        status, revision, got = await _post(calls, probe, body)
    if revision != probe.revision:
        came = f"revision {revision}" if revision else "something that names no revision"
        message = f"The answer came from {came}, not from {probe.revision}."
        return Answer("Failed", "WrongRevision", message, revision)
    if status == 429:
        return Answer("Succeeded", "Busy", "It is alive and has no place free.", revision)
    answer = _json(got)
    if status != 200:
        said = _short(text(answer, "error", "message")) or "it said nothing."
        return Answer("Failed", f"Http{status}", f"The answer was {status}: {said}", revision)
    completions = [choice.get("text") for choice in objects(answer, "choices")]
    if not completions or not isinstance(completions[0], str):
        return Answer("Failed", "NotACompletion", "The answer is no completion.", revision)
    if probe.expect is not None and probe.expect not in completions[0]:
        message = (
            f"{_short(probe.expect)!r} was wanted in the answer to {_short(probe.prompt)!r}, "
            f"but {_short(completions[0])!r} came."
        )
        return Answer("Failed", "UnexpectedAnswer", message, revision)
    return Answer("Succeeded", "Answered", "It answered as it should.", revision)


async def _post(calls: aiohttp.ClientSession, probe: Probe, body: Object) -> tuple[int, str, bytes]:
    """Status, revision and body of the answer."""
    async with calls.post(
        f"{probe.url}/v1/completions",
        json=body,
        headers={} if probe.key is None else {"authorization": f"Bearer {probe.key}"},
        allow_redirects=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
    ) as response:
        revision = _short(response.headers.get("x-servewright-revision", ""))
        return response.status, revision, await _read(response)


def _not_answered(error: Exception, url: str) -> Answer:
    cause = getattr(error, "os_error", error)
    number = getattr(cause, "errno", None)
    why = type(error).__name__ if number is None else os.strerror(number)
    if number in _OWN_ERRORS:
        return Answer("Unknown", "NotAsked", f"The operator could not call {url}: {why}.")
    return Answer("Failed", "NotReached", f"{url} could not be reached: {_short(why)}.")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, at most _MAX_BODY of it."""
    got = b""
    async for chunk in response.content.iter_chunked(65536):
        got += chunk
        if len(got) > _MAX_BODY:
            break
    return got[:_MAX_BODY]


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _short(words: str) -> str:
    return words if len(words) <= _MAX_SHOWN else f"{words[: _MAX_SHOWN - 3]}..."
