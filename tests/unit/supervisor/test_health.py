"""What the supervisor makes of a replica's answers, and of none."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from servewright_runtime.supervisor import health
from servewright_runtime.supervisor.admin import Answer, serve_admin
from servewright_runtime.supervisor.health import Health

LIVE = Answer(200, b"live\n")
DEAD = Answer(503, b"no step for 30 s\n")


@contextlib.asynccontextmanager
async def replica(path: Path, *answers: Answer) -> AsyncIterator[None]:
    """Answers /livez on a Unix socket with each of `answers` in turn, then with the last."""
    left = list(answers)

    async def livez() -> Answer:
        return left.pop(0) if len(left) > 1 else left[0]

    listener = socket.socket(socket.AF_UNIX)
    listener.setblocking(False)
    listener.bind(str(path))
    async with await serve_admin(listener, {"/livez": livez}):
        yield


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "POLL_INTERVAL_S", 0.001)


async def test_before_there_is_a_replica_nothing_is_wrong(tmp_path: Path) -> None:
    assert (await Health(tmp_path / "none.sock").livez()).status == 200


async def test_a_replica_that_is_not_reached_is_not_alive(tmp_path: Path) -> None:
    health = Health(tmp_path / "none.sock")
    health.has_replica = True
    answer = await health.livez()
    assert answer.status == 503
    assert b"not reached" in answer.body


async def test_a_replica_whose_port_is_closed_is_not_alive(tmp_path: Path) -> None:
    async with replica(tmp_path / "replica.sock", LIVE):
        health = Health(tmp_path / "replica.sock")
        health.has_replica = True
        assert (await health.livez()).status == 200
        with socket.socket() as closed:  # nobody listens on it, and nobody else can have it
            closed.bind(("127.0.0.1", 0))
            health.port = closed.getsockname()
            assert (await health.livez()).status == 503


async def test_an_overloaded_port_is_alive(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    overloaded = Answer(503, b"too many connections\n")
    async with (
        replica(tmp_path / "replica.sock", LIVE),
        await serve_admin(listener, {}, overloaded),
    ):
        health = Health(tmp_path / "replica.sock")
        health.has_replica = True
        health.port = listener.getsockname()
        assert (await health.livez()).status == 200


async def test_two_failures_are_forgiven_and_three_in_a_row_are_not(tmp_path: Path) -> None:
    answers = [LIVE, DEAD, DEAD, LIVE, DEAD, DEAD, DEAD]
    ticks = []
    async with replica(tmp_path / "replica.sock", *answers), asyncio.timeout(10):
        health = Health(tmp_path / "replica.sock")
        health.has_replica = True
        assert await health.watch(lambda: ticks.append(1)) == "no step for 30 s"
    assert len(ticks) == len(answers)
