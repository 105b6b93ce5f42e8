"""A load on one address, and an account of every answer that was not whole.

Runs as a program too, `python load.py '{"url": ..., "model": ...}'`, so that it can be handed to a
pod, where Service addresses are reachable; it needs httpx alone. It prints a line of JSON each
second, and after SIGTERM, when every request that was under way has ended, a last one with
`"done": true`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

PROMPT = "Once upon a time"
REVISION_HEADER = "x-servewright-revision"
# The account names so many failures; it counts them all.
NAMED_FAILURES = 50
REPORT_INTERVAL_S = 1.0
RECONNECT_INTERVAL_S = 0.2


@dataclass(frozen=True)
class Load:
    """What to ask, and how often. Each worker has one request under way at a time.

    keep_alive: workers that keep one connection; fresh: workers that open one for each request;
    streams: workers that stream `stream_tokens` tokens. interval_s: a worker's pause between two
    requests. timeout_s: to connect, and to send; silence_s: for so long at most an answer pauses.
    reconnect_s: for so long a connection that is refused is tried anew, as clients do;
    no request was sent on it. for_s: ends by itself after it.
    """

    url: str  # http://HOST:PORT
    model: str
    key: str | None = None
    keep_alive: int = 1
    fresh: int = 1
    streams: int = 1
    stream_tokens: int = 60
    interval_s: float = 0.3
    timeout_s: float = 60.0
    silence_s: float = 60.0
    reconnect_s: float = 0.0
    for_s: float = 600.0

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of the workers that it has, as its account names them."""
        workers = {"keep-alive": self.keep_alive, "fresh": self.fresh, "stream": self.streams}
        return tuple(kind for kind, count in workers.items() if count)


@dataclass
class Account:
    """What became of the requests, by kind of worker: `keep-alive`, `fresh`, `stream`.

    truncated: answers that began and are not whole; failed: all others that are not whole and 200.
    failures: when each of both began, in seconds since the epoch, how long it took, and why.
    """

    whole: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    truncated: Counter[str] = field(default_factory=Counter)
    revisions: Counter[str] = field(default_factory=Counter)  # of whole answers
    refused: int = 0  # connections that were tried anew
    longest_s: float = 0.0  # a whole short answer took
    failures: list[tuple[float, float, str]] = field(default_factory=list)
    done: bool = False

    @property
    def total(self) -> int:
        """Requests that have ended."""
        return self.whole.total() + self.failed.total() + self.truncated.total()

    def say(self) -> str:
        """One line of JSON."""
        return json.dumps(vars(self))

    @classmethod
    def heard(cls, line: str) -> Account:
        """The account that `say` told."""
        told = json.loads(line)
        counters = ("whole", "failed", "truncated", "revisions")
        return cls(**told | {name: Counter(told[name]) for name in counters})


class NotWhole(Exception):
    """An answer that is not what was asked for."""

    def __init__(self, why: str, *, truncated: bool = False) -> None:
        super().__init__(why)
        self.truncated = truncated


async def run(load: Load, account: Account, stop: asyncio.Event) -> None:
    """Ask until `stop`, then let what is under way end. Fills `account` as it goes."""

    async def work(kind: str, ask: Ask, one_connection: bool) -> None:
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(_client(load)) if one_connection else None
            while not stop.is_set():
                started = time.monotonic()
                try:
                    revision = await _one(load, account, ask, client)
                except (NotWhole, httpx.HTTPError) as error:
                    cut = isinstance(error, NotWhole) and error.truncated
                    (account.truncated if cut else account.failed)[kind] += 1
                    if len(account.failures) < NAMED_FAILURES:
                        took_s = round(time.monotonic() - started, 2)
                        why = f"{kind}: {type(error).__name__} {error}"
                        account.failures.append((time.time() - took_s, took_s, why))
                else:
                    account.whole[kind] += 1
                    account.revisions[revision] += 1
                    if kind != "stream":
                        took_s = time.monotonic() - started
                        account.longest_s = max(account.longest_s, took_s)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), load.interval_s)

    async with asyncio.TaskGroup() as group:
        for _ in range(load.keep_alive):
            group.create_task(work("keep-alive", ask_short, True))
        for _ in range(load.fresh):
            group.create_task(work("fresh", ask_short, False))
        for _ in range(load.streams):
            group.create_task(work("stream", ask_stream, False))
    account.done = True


Ask = Callable[[httpx.AsyncClient, Load], Awaitable[str]]


async def _one(load: Load, account: Account, ask: Ask, client: httpx.AsyncClient | None) -> str:
    deadline = time.monotonic() + load.reconnect_s
    while True:
        try:
            if client is not None:
                return await ask(client, load)
            async with _client(load) as own:
                return await ask(own, load)
        except httpx.ConnectError:
            if time.monotonic() > deadline:
                raise
            account.refused += 1
            await asyncio.sleep(RECONNECT_INTERVAL_S)


def _client(load: Load) -> httpx.AsyncClient:
    headers = {} if load.key is None else {"authorization": f"Bearer {load.key}"}
    return httpx.AsyncClient(
        base_url=load.url,
        headers=headers,
        timeout=httpx.Timeout(load.timeout_s, read=load.silence_s),
        trust_env=False,
    )


async def ask_short(client: httpx.AsyncClient, load: Load) -> str:
    """One token, whole. Returns the revision that answered. Raises NotWhole, httpx.HTTPError."""
    body = {"model": load.model, "prompt": PROMPT, "max_tokens": 1, "temperature": 0}
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        try:
            text = await answer.aread()
        except httpx.HTTPError as error:
            raise NotWhole(f"{type(error).__name__} {error}", truncated=True) from error
    _must_be_200(answer, text)
    try:
        finished = json.loads(text)["choices"][0]["finish_reason"]
    except (ValueError, LookupError, TypeError) as error:
        raise NotWhole(f"no completion: {text[:200]!r}", truncated=True) from error
    if not finished:
        raise NotWhole(f"no finish_reason: {text[:200]!r}", truncated=True)
    return _revision(answer)


async def ask_stream(client: httpx.AsyncClient, load: Load) -> str:
    """A stream of tokens to its `[DONE]`. Returns and raises as `ask_short`."""
    body = {
        "model": load.model,
        "prompt": PROMPT,
        "max_tokens": load.stream_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
    }
    finished, done, events = None, False, 0
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            _must_be_200(answer, await answer.aread())
        try:
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    continue
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    done = True
                    continue
                events += 1
                choices = _event(data)
                finished = choices[0].get("finish_reason") if choices else finished
        except httpx.HTTPError as error:
            why = f"{type(error).__name__} {error} after {events} events"
            raise NotWhole(why, truncated=True) from error
    if not done:
        raise NotWhole(f"the stream ended after {events} events without [DONE]", truncated=True)
    if finished != "length":
        raise NotWhole(f"finish_reason is {finished!r} after {events} events", truncated=True)
    return _revision(answer)


def _event(data: str) -> list[dict[str, Any]]:
    try:
        choices: list[dict[str, Any]] = json.loads(data)["choices"]
    except (ValueError, LookupError, TypeError) as error:
        raise NotWhole(f"not an event of a completion: {data[:200]}", truncated=True) from error
    return choices


def _must_be_200(answer: httpx.Response, text: bytes) -> None:
    if answer.status_code != 200:
        raise NotWhole(f"status {answer.status_code}: {text[:200]!r}")


def _revision(answer: httpx.Response) -> str:
    revision: str = answer.headers.get(REVISION_HEADER, "")
    return revision


async def _main(load: Load) -> None:
    account, stop = Account(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.call_later(load.for_s, stop.set)
    task = asyncio.create_task(run(load, account, stop))
    while not task.done():
        await asyncio.wait({task}, timeout=REPORT_INTERVAL_S)
        print(account.say(), flush=True)
    await task


if __name__ == "__main__":
    asyncio.run(_main(Load(**json.loads(sys.argv[1]))))
