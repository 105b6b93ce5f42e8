"""A load client that costs next to nothing: it shares the cores with the server it measures.

One thread, one epoll loop, raw sockets. While the load runs it only stores what it receives and
when; replies are taken apart afterwards. Reads a `Load` as JSON from stdin and writes a `Measured`
as JSON to stdout, so that the loop has a process of its own:

    python bench/client.py < load.json
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import select
import socket
import statistics
import sys
import time
from collections import deque
from dataclasses import dataclass, field

RECEIVE_BYTES = 1 << 16
# The last chunk of a chunked body: how both servers end a stream.
LAST_CHUNK = b"0\r\n\r\n"
# A data frame that brings text. Token arrays make no other frames interesting.
TEXT_FRAME = re.compile(rb'"text":\s?"(?!")')
COMPLETION_TOKENS = re.compile(rb'"completion_tokens":\s?(\d+)')
PROMPT_TOKENS = re.compile(rb'"prompt_tokens":\s?(\d+)')


class LoadFailed(Exception):
    """The server did not do what the load asks of it."""


@dataclass(frozen=True)
class Load:
    """What to ask: each of `streams` sends a prompt as soon as its last answer has ended."""

    port: int
    model: str
    streams: int
    prompts: list[list[int]]  # token ids; each is sent once
    max_tokens: int
    extra: dict[str, object] = field(default_factory=dict)  # more fields of the body
    timeout_s: float = 120.0


@dataclass(frozen=True)
class Measured:
    """What came: rates in output tokens a second, times in seconds."""

    requests: int
    tokens: int
    seconds: float  # first request sent until last answer ended
    tokens_per_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    gap_p50_s: float  # between two frames with text of one answer
    gap_p99_s: float
    client_cpu_share: float  # of one core; says whether the client disturbed the server


@dataclass(eq=False)
class Reply:
    """One exchange as it happened."""

    sock: socket.socket
    sent_at: float
    received: bytearray = field(default_factory=bytearray)
    arrivals: list[tuple[float, int]] = field(default_factory=list)  # (when, bytes so far)
    ended_at: float = 0.0


def run(load: Load) -> Measured:
    """Send the load. Raises LoadFailed on any answer that is not whole and as asked."""
    bodies = deque(_http_request(load, prompt) for prompt in load.prompts)
    epoll = select.epoll()
    alive: dict[int, Reply] = {}
    done: list[Reply] = []

    def send_next() -> None:
        data = bodies.popleft()
        sent_at = time.perf_counter()
        sock = socket.create_connection(("127.0.0.1", load.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(data)
        epoll.register(sock.fileno(), select.EPOLLIN)
        alive[sock.fileno()] = Reply(sock, sent_at)

    cpu_before = time.process_time()
    begin = time.perf_counter()
    for _ in range(min(load.streams, len(bodies))):
        send_next()
    while alive:
        events = epoll.poll(timeout=load.timeout_s)
        if not events:
            raise LoadFailed(f"no byte came for {load.timeout_s} s, {len(alive)} answers open")
        for descriptor, _ in events:
            reply = alive[descriptor]
            data = reply.sock.recv(RECEIVE_BYTES)
            now = time.perf_counter()
            reply.received += data
            reply.arrivals.append((now, len(reply.received)))
            if not data or reply.received.endswith(LAST_CHUNK):
                reply.ended_at = now
                epoll.unregister(descriptor)
                del alive[descriptor]
                reply.sock.close()
                done.append(reply)
                if bodies:
                    send_next()
    seconds = time.perf_counter() - begin
    cpu_share = (time.process_time() - cpu_before) / seconds
    epoll.close()
    return _measured(load, done, seconds, cpu_share)


def _http_request(load: Load, prompt: list[int]) -> bytes:
    body = json.dumps(
        {
            "model": load.model,
            "prompt": prompt,
            "max_tokens": load.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **load.extra,
        }
    ).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def _measured(load: Load, replies: list[Reply], seconds: float, cpu_share: float) -> Measured:
    ttfts: list[float] = []
    gaps: list[float] = []
    tokens = 0
    for reply in replies:
        times = frame_times(reply)
        if not times:
            raise LoadFailed(f"an answer holds no text: {bytes(reply.received[:600])!r}")
        completion = _last_number(COMPLETION_TOKENS, reply)
        prompt = _last_number(PROMPT_TOKENS, reply)
        if completion != load.max_tokens or prompt != len(load.prompts[0]):
            raise LoadFailed(
                f"asked for {len(load.prompts[0])} tokens in and {load.max_tokens} out, "
                f"usage says {prompt} and {completion}"
            )
        tokens += completion
        ttfts.append(times[0] - reply.sent_at)
        gaps += [b - a for a, b in itertools.pairwise(times)]
    return Measured(
        requests=len(replies),
        tokens=tokens,
        seconds=seconds,
        tokens_per_s=tokens / seconds,
        ttft_p50_s=statistics.median(ttfts),
        ttft_p99_s=percentile(ttfts, 99),
        gap_p50_s=statistics.median(gaps),
        gap_p99_s=percentile(gaps, 99),
        client_cpu_share=cpu_share,
    )


def frame_times(reply: Reply) -> list[float]:
    """When each frame with text came, that is, when its text had come."""
    arrivals = iter(reply.arrivals)
    when, end = next(arrivals)
    times = []
    for match in TEXT_FRAME.finditer(reply.received):
        while end < match.end():
            when, end = next(arrivals)
        times.append(when)
    return times


def _last_number(pattern: re.Pattern[bytes], reply: Reply) -> int | None:
    found = pattern.findall(reply.received)
    return int(found[-1]) if found else None


def percentile(values: list[float], percent: float) -> float:
    """The smallest value that at least `percent` of 100 values do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


if __name__ == "__main__":
    try:
        measured = run(Load(**json.load(sys.stdin)))
    except (LoadFailed, OSError) as error:
        sys.exit(f"load client: {error}")
    json.dump(dataclasses.asdict(measured), sys.stdout)
