"""What is asked about a failing pod, and how often; and what is posted about a ModelService."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from kubernetes.aio.client import Configuration

from servewright_operator import names
from servewright_operator.client import Client
from servewright_operator.events import REPEAT_AFTER_S, WAITING, Events
from servewright_operator.objects import Note
from support.fake_kubernetes import FakeKubernetes
from support.operators import make_service, running_operator, settle
from support.waiting import eventually

Object = dict[str, Any]


def crashing_pod(restarts: int) -> Object:
    ended = {
        "exitCode": 1,
        "reason": "Error",
        "finishedAt": f"2026-01-01T00:00:{restarts:02d}Z",
        "startedAt": "2026-01-01T00:00:00Z",
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "m-1",
            "namespace": "default",
            "labels": {**names.labels("m"), names.REVISION_LABEL: "0123456789"},
            "ownerReferences": [
                {"kind": "ReplicaSet", "name": "m", "uid": "rs", "controller": True}
            ],
        },
        "spec": {"nodeName": "n1", "containers": []},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [
                {
                    "name": names.REPLICA_CONTAINER,
                    "restartCount": restarts,
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {"terminated": ended},
                }
            ],
        },
    }


def test_the_log_of_a_crash_is_read_once_a_restart(fake: FakeKubernetes) -> None:
    fake.put(make_service("m"))
    fake.put(crashing_pod(1))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        for _ in range(3):
            operator.pass_over("m")
        assert fake.count()["get-log", "Pod"] == 1
        fake.put(crashing_pod(2))
        eventually(lambda: fake.count()["get-log", "Pod"] == 2)
        operator.pass_over("m")
    assert fake.count()["get-log", "Pod"] == 2
    status = (fake.get("ModelService", "m") or {})["status"]
    assert status["lastFailure"]["logTail"] == "the last line"


@contextlib.asynccontextmanager
async def posting(url: str, clock: Callable[[], float]) -> AsyncIterator[Events]:
    """Events that are posted to an API server meanwhile."""
    async with Client(Configuration(host=url)) as client:
        events = Events(client, "operator-1", clock)
        task = asyncio.create_task(events.post())
        try:
            yield events
        finally:
            task.cancel()


async def test_the_same_event_is_told_again_only_after_a_while(fake: FakeKubernetes) -> None:
    now = 0.0
    service = fake.put(make_service("m"))
    note = Note("Warning", "PodFailing", "out of memory")

    async def tell(*notes: Note) -> int:
        events.tell(service, notes)
        await events.posted()
        return len(fake.all("Event"))

    async with posting(fake.url, lambda: now) as events:
        assert await tell(note, note) == 1
        assert await tell(Note("Warning", "PodFailing", "something else")) == 2
        now = REPEAT_AFTER_S - 1
        assert await tell(note) == 2
        now = REPEAT_AFTER_S
        assert await tell(note) == 3
    told = fake.all("Event")
    assert told[0]["involvedObject"]["uid"] == service["metadata"]["uid"]
    assert told[0]["reportingComponent"] == names.FIELD_MANAGER


async def test_an_event_that_cannot_be_posted_stops_nothing(
    fake: FakeKubernetes, caplog: pytest.LogCaptureFixture
) -> None:
    service = fake.put(make_service("m"))
    async with posting("http://127.0.0.1:1", lambda: 0.0) as events:
        events.tell(service, [Note("Normal", "Ready", "it answered")] * 2)
        events.tell(service, [Note("Normal", "Ready", "it answered again")])
        await events.posted()
    assert caplog.messages == ["could not post an event"] * 2


async def test_events_that_nobody_takes_are_bounded(
    fake: FakeKubernetes, caplog: pytest.LogCaptureFixture
) -> None:
    service = fake.put(make_service("m"))
    async with Client(Configuration(host=fake.url)) as client:
        events = Events(client, "operator-1", lambda: 0.0)
        events.tell(service, [Note("Normal", "Ready", str(n)) for n in range(WAITING + 2)])
    assert caplog.messages == ["too many events wait; one is left out"] * 2
