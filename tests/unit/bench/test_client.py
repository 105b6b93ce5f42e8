"""The load client against a server whose every byte and delay is known."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from bench.client import Load, LoadFailed, Reply, frame_times, percentile, run

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def frame(**fields: Any) -> bytes:
    return chunk(b"data: " + json.dumps(fields).encode() + b"\n\n")


def text(value: str) -> bytes:
    return frame(choices=[{"index": 0, "text": value}])


def usage(prompt: int, completion: int) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    return frame(choices=[], usage=counts) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


@contextmanager
def serving(*writes: bytes) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """A server that answers each connection with `writes`; yields its port and the bodies seen."""
    bodies: list[dict[str, Any]] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer(connection: socket.socket) -> None:
            with connection:
                received = b""
                while b"\r\n\r\n" not in received:
                    received += connection.recv(65536)
                head, _, body = received.partition(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                while len(body) < length:
                    body += connection.recv(65536)
                bodies.append(json.loads(body))
                for data in writes:
                    connection.sendall(data)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                answer(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1], bodies
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=10)


PROMPTS = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def make_load(port: int, **extra: object) -> Load:
    return Load(port, "m", streams=2, prompts=PROMPTS, max_tokens=2, extra=extra, timeout_s=30.0)


def test_every_prompt_is_sent_once_and_every_token_counted() -> None:
    with serving(HEAD, text("a"), text("b"), usage(3, 2)) as (port, bodies):
        measured = run(make_load(port, cache_prompt=False))
    assert sorted(body["prompt"] for body in bodies) == PROMPTS
    assert all(body["cache_prompt"] is False and body["max_tokens"] == 2 for body in bodies)
    assert (measured.requests, measured.tokens) == (3, 6)
    assert measured.tokens_per_s == pytest.approx(6 / measured.seconds)


def test_frames_without_text_are_no_tokens() -> None:
    reply = Reply(socket.socket(), sent_at=0.0)
    for when, data in ((1.0, HEAD + text("")), (2.0, text("a")), (3.0, text("b")[:9])):
        reply.received += data
        reply.arrivals.append((when, len(reply.received)))
    reply.received += text("b")[9:] + usage(3, 2)
    reply.arrivals.append((4.0, len(reply.received)))
    reply.sock.close()
    assert frame_times(reply) == [2.0, 4.0]


def test_an_answer_shorter_than_asked_for_fails_the_load() -> None:
    wrong = pytest.raises(LoadFailed, match="3 tokens in and 2 out, usage says 3 and 1")
    with serving(HEAD, text("a"), usage(3, 1)) as (port, _), wrong:
        run(make_load(port))


def test_a_refusal_fails_the_load_with_what_the_server_said() -> None:
    refusal = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nbusy"
    refused = pytest.raises(LoadFailed, match="429 Too Many Requests")
    with serving(refusal) as (port, _), refused:
        run(make_load(port))


@pytest.mark.parametrize(("percent", "wanted"), [(50, 5), (99, 10), (100, 10), (0, 1)])
def test_a_percentile_is_a_value_that_was_measured(percent: float, wanted: float) -> None:
    assert percentile([float(value) for value in range(10, 0, -1)], percent) == wanted
