"""The operator's process when the API server goes, forgets and quarrels: it comes through by
itself, puts right what it missed, and never shouts at the API server."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from servewright_operator import kinds
from support import apiserver
from support.apiserver import ApiServer
from support.objects import Objects, Refused
from support.operator_process import OperatorProcess, operator_process
from support.place import Place
from support.waiting import at_rest, consistently, eventually

LEASES = "servewright"
STORM_S, STORM_PAUSE_S = 4.0, 0.02
# A repair waits for twice as long as the one before; ten of them would take 17 minutes.
MOST_REPAIRS = 6
CALM_S = 2.5


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    """One that may be stopped: nobody else is on it."""
    with apiserver.api_server(own=True) as found:
        apiserver.apply_crds(found)
        found.kubectl("create", "namespace", LEASES)
        yield found


@pytest.fixture(scope="module")
def operator(
    server: ApiServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    log = tmp_path_factory.mktemp("operator") / "log"
    with operator_process(server.kubeconfig, log, lease_namespace=LEASES) as running:
        yield running


@pytest.fixture
def place(server: ApiServer, operator: OperatorProcess) -> Iterator[Place]:
    """A fresh namespace with a ModelService `m`."""
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    server.kubectl("create", "namespace", namespace)
    with contextlib.closing(Objects(server)) as objects:
        made = Place(objects, namespace)
        made.serve(replicas=2)
        eventually(made.status, interval_s=0.1)
        yield made
        made.leave()


def calm(place: Place, operator: OperatorProcess) -> None:
    """Return once the operator has not written for a while."""
    at_rest(
        lambda: (operator.writes(), place.versions()), for_s=CALM_S, timeout_s=60.0, interval_s=0.5
    )


@contextlib.contextmanager
def counted(place: Place, operator: OperatorProcess) -> Iterator[Counter[tuple[str, str]]]:
    """What the operator writes from one calm to the next, known at the end."""
    calm(place, operator)
    before = operator.writes()
    found: Counter[tuple[str, str]] = Counter()
    yield found
    calm(place, operator)
    found.update(operator.writes() - before)


def unanswered(operator: OperatorProcess) -> list[dict[str, Any]]:
    """What an operator said while no API server answered it."""
    return [one for one in operator.records() if one["event"] == "no answer about the lease"]


def keep_alive(operator: OperatorProcess, is_so: Callable[[], bool]) -> None:
    """Wait for something; meanwhile be the kubelet of an operator that gives up its Lease."""

    def looked() -> bool:
        operator.restart_if_ended()
        return is_so()

    eventually(looked, timeout_s=90.0, interval_s=0.2)


def test_an_api_server_that_comes_back_finds_an_operator_that_works(
    server: ApiServer, operator: OperatorProcess, place: Place
) -> None:
    calm(place, operator)
    before = place.versions()
    missed = len(unanswered(operator))
    server.stop()
    eventually(lambda: len(unanswered(operator)) > missed, interval_s=0.1)
    server.start()
    keep_alive(operator, operator.is_leader)
    consistently(lambda: place.versions() == before, for_s=CALM_S, interval_s=0.5)
    place.edit(kinds.MODEL_SERVICE, "m", {"spec": {"replicas": 3}})
    keep_alive(operator, lambda: place.get(kinds.DEPLOYMENT)["spec"]["replicas"] == 3)
    assert operator.mistakes() == []


def test_what_happened_while_no_watch_could_tell_of_it_is_put_right(
    server: ApiServer, operator: OperatorProcess, place: Place
) -> None:
    """The API server restarts and its past is compacted away: every watch ends with 410."""
    calm(place, operator)
    seen = place.get(kinds.MODEL_SERVICE)["metadata"]["resourceVersion"]
    operator.signal(signal.SIGSTOP)
    server.stop()
    server.start()
    uid = place.get(kinds.SERVICE)["metadata"]["uid"]
    place.delete(kinds.SERVICE, "m")
    place.delete(kinds.DISRUPTION_BUDGET, "m")
    place.edit(kinds.DEPLOYMENT, "m", {"spec": {"replicas": 9}})
    place.edit(kinds.MODEL_SERVICE, "m", {"spec": {"replicas": 4}})
    compact(server, int(place.get(kinds.MODEL_SERVICE)["metadata"]["resourceVersion"]))
    assert is_too_old(place, seen)
    operator.signal(signal.SIGCONT)

    def is_right() -> bool:
        service = place.find(kinds.SERVICE, "m")
        return (
            service is not None
            and service["metadata"]["uid"] != uid
            and place.find(kinds.DISRUPTION_BUDGET, "m") is not None
            and place.get(kinds.DEPLOYMENT)["spec"]["replicas"] == 4
            and place.status()["observedGeneration"] == 2
        )

    keep_alive(operator, is_right)
    calm(place, operator)
    assert operator.mistakes() == []


def compact(server: ApiServer, version: int) -> None:
    """Let etcd forget what was before a resourceVersion, as it does every five minutes."""
    connection = http.client.HTTPConnection(urlsplit(server.database).netloc, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", "/v3/kv/compaction", json.dumps({"revision": version}))
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()


def is_too_old(place: Place, version: str) -> bool:
    """Whether a watch cannot go on from there."""
    query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": "1"}
    try:
        answer = place.objects.request("GET", kinds.MODEL_SERVICE.path(None), query)
    except Refused as refused:
        return str(refused).startswith("410")
    return bool(answer["object"].get("code") == 410)


def test_a_storm_of_harmless_writes_is_answered_by_none(
    operator: OperatorProcess, place: Place
) -> None:
    with counted(place, operator) as writes:
        written = storm(
            lambda count: [
                place.edit(kind, "m", {"metadata": {"annotations": {"theirs": str(count)}}})
                for kind in (kinds.MODEL_SERVICE, kinds.DEPLOYMENT, kinds.SERVICE)
            ]
        )
    assert written > 10
    assert writes == {}


def test_who_fights_for_a_field_is_not_fought_at_full_speed_and_loses(
    operator: OperatorProcess, place: Place
) -> None:
    with counted(place, operator) as writes:
        written = storm(
            lambda count: [
                place.edit(kinds.DEPLOYMENT, "m", {"spec": {"replicas": 7 + count % 2}}),
                place.edit(kinds.SERVICE, "m", {"spec": {"selector": {"app": f"theirs-{count}"}}}),
            ]
        )
        eventually(
            lambda: (
                place.get(kinds.DEPLOYMENT)["spec"]["replicas"] == 2
                and "app" not in place.get(kinds.SERVICE)["spec"]["selector"]
            ),
            interval_s=0.2,
        )
    assert written > 10
    assert 1 <= writes["apply", "Deployment"] <= MOST_REPAIRS
    assert 1 <= writes["apply", "Service"] <= MOST_REPAIRS
    assert sum(writes.values()) <= 6 * MOST_REPAIRS, writes


def test_a_user_who_cannot_decide_gets_what_was_wanted_last(
    operator: OperatorProcess, place: Place
) -> None:
    with counted(place, operator) as writes:
        wanted = storm(
            lambda count: [place.edit(kinds.MODEL_SERVICE, "m", {"spec": {"replicas": 2 + count}})]
        )
        eventually(
            lambda: place.get(kinds.DEPLOYMENT)["spec"]["replicas"] == 1 + wanted, interval_s=0.2
        )
        generation = place.get(kinds.MODEL_SERVICE)["metadata"]["generation"]
        eventually(lambda: place.status()["observedGeneration"] == generation, interval_s=0.2)
    assert writes["apply", "Deployment"] <= wanted
    assert writes["apply-status", "ModelService"] <= wanted + 3


def test_an_operator_newer_than_its_crd_serves_on_and_says_what_to_upgrade(
    server: ApiServer, operator: OperatorProcess, place: Place
) -> None:
    name = "modelservices.servewright.io"
    crd = json.loads(server.kubectl("get", "crd", name, "--output=json"))
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["properties"]["status"]["properties"]["revision"]
    server.kubectl("replace", "--filename=-", stdin=json.dumps(crd))
    try:
        # Until the API server has taken it in, this one's status can be written still.
        eventually(lambda: is_refused(place), interval_s=0.2)
        place.serve("other")
        eventually(lambda: place.find(kinds.DEPLOYMENT, "other"), interval_s=0.1)
        eventually(lambda: place.events("OldCrd", "other"), interval_s=0.2)
        (message,) = place.events("OldCrd", "other")
        assert message.endswith("upgrade the chart servewright-crds.")
        assert [one["event"] for one in operator.records("error")].count(message) == 1
        assert place.status("other") == {}
    finally:
        apiserver.apply_crds(server)
    eventually(lambda: place.status("other").get("revision"), interval_s=0.2, timeout_s=60.0)


def is_refused(place: Place) -> bool:
    """Whether the API server knows no `status.revision` any more."""
    manifest = place.get(kinds.MODEL_SERVICE)
    metadata = {key: manifest["metadata"][key] for key in ("name", "namespace")}
    body = {**manifest, "metadata": metadata, "spec": None, "status": {"revision": "x"}}
    path = kinds.MODEL_SERVICE.path(place.namespace, "m", "status")
    query = {"fieldManager": "nobody", "force": "true", "dryRun": "All"}
    try:
        place.objects.request("PATCH", path, query, body, "application/apply-patch+yaml")
    except Refused:
        return True
    return False


def storm(write: Callable[[int], object]) -> int:
    """Write again and again, up to 50 times a second, for some seconds: how often."""
    ends, count = time.monotonic() + STORM_S, 0
    while time.monotonic() < ends:
        write(count)
        count += 1
        time.sleep(STORM_PAUSE_S)
    return count
