"""Two replicas of the operator: one acts. Whatever ends it, the other goes on, and a replica that
slept through its Lease does no harm when it wakes."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from servewright_operator import kinds
from support.apiserver import ApiServer
from support.operator_process import OperatorProcess, operator_process
from support.place import Place
from support.waiting import at_rest, consistently, eventually

# Promised: of a replica that was killed, and of one that is told to go (2 s, were it not for a
# machine on which other things run).
TAKEOVER_S, HANDOVER_S = 20.0, 8.0
STAYS_S = 2.0


@pytest.fixture
def pair(
    api_server: ApiServer, place: Place, tmp_path: Path
) -> Iterator[tuple[OperatorProcess, OperatorProcess]]:
    """One that leads and one that stands by, for a namespace."""
    with contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(
                operator_process(
                    api_server.kubeconfig,
                    tmp_path / name,
                    lease_namespace=place.namespace,
                    namespaces=(place.namespace,),
                    name=name,
                    wait=False,
                )
            )
            for name in ("operator-1", "operator-2")
        )
        for each in (first, second):
            each.wait_until_serving()
        eventually(lambda: first.is_leader() or second.is_leader(), interval_s=0.1)
        yield (first, second) if first.is_leader() else (second, first)


def holder(place: Place) -> str:
    lease = place.find(kinds.LEASE, "servewright-operator")
    return "" if lease is None else str(lease["spec"]["holderIdentity"])


def acts(place: Place, replicas: int) -> None:
    """Return once an edit has reached the Deployment."""
    place.edit(kinds.MODEL_SERVICE, "m", {"spec": {"replicas": replicas}})
    eventually(lambda: place.get(kinds.DEPLOYMENT)["spec"]["replicas"] == replicas, interval_s=0.1)


def serve(place: Place) -> None:
    """Return once the operator has told of a ModelService of one replica."""
    place.serve(replicas=1)
    eventually(place.status, interval_s=0.1)


def settled(place: Place) -> None:
    """Return once nothing has been written for a while."""
    at_rest(place.versions, for_s=STAYS_S, interval_s=0.5)


def test_one_of_two_acts_and_within_20_s_of_its_kill_the_other_does(
    pair: tuple[OperatorProcess, OperatorProcess], place: Place
) -> None:
    leader, standby = pair
    serve(place)
    assert holder(place) == leader.name
    assert not standby.is_leader()
    assert standby.passes() == 0
    assert standby.writes() == {}

    leader.signal(signal.SIGKILL)
    leader.wait()
    eventually(lambda: holder(place) == standby.name, timeout_s=TAKEOVER_S, interval_s=0.1)
    acts(place, 2)


def test_one_that_is_told_to_go_hands_over_at_once(
    pair: tuple[OperatorProcess, OperatorProcess], place: Place
) -> None:
    leader, standby = pair
    serve(place)
    settled(place)
    before = place.versions()
    leader.signal(signal.SIGTERM)
    eventually(lambda: holder(place) == standby.name, timeout_s=HANDOVER_S, interval_s=0.05)
    assert leader.wait() == 0
    eventually(lambda: standby.passes() > 0, interval_s=0.1)
    settled(place)
    assert place.versions() == before
    acts(place, 2)


def test_one_that_slept_through_its_lease_wakes_up_powerless(
    pair: tuple[OperatorProcess, OperatorProcess], place: Place
) -> None:
    leader, standby = pair
    serve(place)
    leader.signal(signal.SIGSTOP)
    eventually(lambda: holder(place) == standby.name, timeout_s=TAKEOVER_S, interval_s=0.1)
    # It still believes in what is there no more.
    place.delete(kinds.SERVICE, "m")
    acts(place, 2)
    eventually(lambda: place.find(kinds.SERVICE, "m"), interval_s=0.2)
    settled(place)
    before = place.versions()
    leader.signal(signal.SIGCONT)
    assert leader.wait() == 1
    leader.start()
    consistently(
        lambda: place.versions() == before and holder(place) == standby.name,
        for_s=STAYS_S,
        interval_s=0.2,
    )
    assert not leader.is_leader()


def test_what_is_in_other_namespaces_is_none_of_its_business(
    pair: tuple[OperatorProcess, OperatorProcess], place: Place, module_namespace: str
) -> None:
    elsewhere = Place(place.objects, module_namespace)
    elsewhere.serve("m")
    serve(place)
    settled(place)
    assert elsewhere.children() == {}
    assert elsewhere.status() == {}
    counted = {
        sample.value
        for sample in pair[0].metrics()
        if sample.name == "servewright_operator_modelservices"
    }
    assert max(counted) == 1
    assert pair[0].records("warning", "error") == []
    elsewhere.leave()
