"""Who leads: one at a time, the next one soon, and nobody who slept through its Lease."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import yaml
from kubernetes.aio.client import Configuration

from servewright_operator import kinds
from servewright_operator.client import ApiError, Client
from servewright_operator.lease import Lease, Lost
from support.fake_kubernetes import FakeKubernetes, Fault
from support.operator_process import OperatorProcess, operator_process
from support.operators import make_service
from support.waiting import eventually

PLACE = ("servewright", "servewright-operator")
DURATION_S = 15.0


class Replica:
    """A Lease as one replica sees it, on a clock that the test moves."""

    def __init__(self, client: Client, identity: str) -> None:
        self.now = 0.0
        self.lease = Lease(
            client,
            namespace=PLACE[0],
            name=PLACE[1],
            identity=identity,
            duration_s=DURATION_S,
            renew_s=0.0,
            clock=lambda: self.now,
        )


@contextmanager
def replicas(fake: FakeKubernetes) -> Iterator[tuple[Client, Replica, Replica]]:
    client = Client(Configuration(host=fake.url))
    yield client, Replica(client, "a"), Replica(client, "b")


async def test_the_second_waits_until_the_first_is_silent_for_its_duration(
    fake: FakeKubernetes,
) -> None:
    with replicas(fake) as (client, first, second):
        async with client:
            assert await first.lease.attempt()
            assert not await second.lease.attempt()
            second.now = DURATION_S - 1
            assert not await second.lease.attempt()
            assert await first.lease.attempt()  # renews
            second.now = DURATION_S + 1
            assert not await second.lease.attempt()
            second.now = 2 * DURATION_S + 1.1
            assert await second.lease.attempt()
            assert second.lease.is_held()
    spec = (fake.get("Lease", "servewright-operator", "servewright") or {})["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("b", 1)


async def test_a_released_lease_is_taken_at_once(fake: FakeKubernetes) -> None:
    with replicas(fake) as (client, first, second):
        async with client:
            assert await first.lease.attempt()
            assert not await second.lease.attempt()
            await first.lease.release()
            assert not first.lease.is_held()
            assert await second.lease.attempt()


@pytest.mark.parametrize(("holder", "is_given_up"), [("a", True), ("b", False)])
async def test_a_lease_that_changed_since_is_given_up_if_it_is_still_ours(
    fake: FakeKubernetes, holder: str, is_given_up: bool
) -> None:
    with replicas(fake) as (client, first, _):
        async with client:
            assert await first.lease.attempt()
            live = await client.get(kinds.LEASE, *PLACE)
            assert live is not None
            live["spec"]["holderIdentity"] = holder
            await client.replace(live)
            await first.lease.release()
            left = await client.get(kinds.LEASE, *PLACE)
    assert left is not None
    assert left["spec"]["holderIdentity"] == ("" if is_given_up else holder)


async def test_of_two_that_try_at_once_one_gets_it(fake: FakeKubernetes) -> None:
    with replicas(fake) as (client, first, second):
        async with client:
            got = await asyncio.gather(first.lease.attempt(), second.lease.attempt())
    assert sorted(got) == [False, True]


async def test_a_holder_that_cannot_renew_stops_before_another_may_start(
    fake: FakeKubernetes,
) -> None:
    with replicas(fake) as (client, first, _):
        async with client:
            assert await first.lease.attempt()
            fake.faults.append(Fault("*", "Lease", 500, times=99))
            first.now = DURATION_S * 2 / 3 - 0.1
            assert not await first.lease.attempt()
            assert first.lease.is_held()
            first.now = DURATION_S * 2 / 3 + 0.1
            with pytest.raises(Lost, match="was not renewed by a for 10 s"):
                await first.lease.hold()


async def test_a_holder_whose_lease_was_taken_stops_at_once(fake: FakeKubernetes) -> None:
    with replicas(fake) as (client, first, second):
        async with client:
            assert await first.lease.attempt()
            assert not await second.lease.attempt()
            second.now = DURATION_S + 1
            assert await second.lease.attempt()
            with pytest.raises(Lost):
                await first.lease.hold()


async def test_nothing_is_written_without_the_lease(fake: FakeKubernetes) -> None:
    with replicas(fake) as (lease_client, first, _):
        async with lease_client, Client(Configuration(host=fake.url)) as client:
            assert await first.lease.attempt()
            client.may_write = first.lease.is_held
            service = fake.put(make_service("m"))
            await client.apply_status(service, {"replicas": 1})
            first.now = DURATION_S  # it slept
            with pytest.raises(ApiError, match="another replica may act by now"):
                await client.apply_status(service, {"replicas": 2})
    assert (fake.get("ModelService", "m") or {})["status"] == {"replicas": 1}


@pytest.fixture
def kubeconfig(fake: FakeKubernetes, tmp_path: Path) -> Path:
    """Where an operator finds the fake, which asks for no credentials."""
    path = tmp_path / "kubeconfig"
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "fake",
                "clusters": [{"name": "fake", "cluster": {"server": fake.url}}],
                "users": [{"name": "nobody", "user": {}}],
                "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "nobody"}}],
            }
        )
    )
    return path


def test_after_kill_9_the_other_replica_works_within_20_s_and_after_sigterm_at_once(
    fake: FakeKubernetes, kubeconfig: Path, tmp_path: Path
) -> None:
    def replica(name: str) -> AbstractContextManager[OperatorProcess]:
        return operator_process(
            kubeconfig, tmp_path / name, lease_namespace="servewright", name=name
        )

    def holder() -> str:
        lease = fake.get("Lease", "servewright-operator", "servewright")
        return "" if lease is None else str(lease["spec"]["holderIdentity"])

    with replica("one") as one, replica("two") as two:
        eventually(holder)
        leader, standby = (one, two) if holder() == "one" else (two, one)
        fake.put(make_service("m"))
        eventually(lambda: fake.get("Deployment", "m"))

        leader.signal(signal.SIGKILL)
        killed_at = time.monotonic()
        fake.put(make_service("while-nobody-led"))
        eventually(lambda: fake.get("Deployment", "while-nobody-led"), timeout_s=60)
        assert holder() == standby.name
        assert time.monotonic() - killed_at < 20

        with replica("three"):
            standby.signal(signal.SIGTERM)
            ended_at = time.monotonic()
            eventually(lambda: holder() == "three")
            assert standby.wait() == 0
            assert time.monotonic() - ended_at < 10  # 2 s where a machine is not busy
