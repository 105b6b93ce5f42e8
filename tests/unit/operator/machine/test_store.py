"""The store: the newest form of each object, whoever tells it, in whichever order."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from servewright_operator import kinds, names
from servewright_operator.names import Key
from servewright_operator.store import Store

Object = dict[str, Any]
KEY = Key("default", "m")


def make_service(version: int = 1, uid: str = "owner") -> Object:
    metadata = {
        "name": "m",
        "namespace": "default",
        "uid": uid,
        "resourceVersion": str(version),
        "managedFields": [{"manager": "kubectl"}],
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "mine": "1"},
    }
    return {"apiVersion": "servewright.io/v1alpha1", "kind": "ModelService", "metadata": metadata}


def make_child(
    version: int = 1, *, uid: str = "child", name: str = "m", owner: str = "owner", **spec: Any
) -> Object:
    reference = {"kind": "ModelService", "name": "m", "uid": owner, "controller": True}
    metadata = {
        "name": name,
        "namespace": "default",
        "uid": uid,
        "resourceVersion": str(version),
        "labels": names.labels("m"),
        "ownerReferences": [reference],
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def version_of(store: Store, uid: str = "child") -> int | None:
    known = store.get(uid)
    return None if known is None else int(known["metadata"]["resourceVersion"])


def test_only_what_is_newer_is_news() -> None:
    store = Store()
    assert store.put(make_child(9)) == KEY
    assert store.put(make_child(9)) is None
    assert store.put(make_child(8)) is None
    assert store.put(make_child(10)) == KEY  # not by its letters
    assert version_of(store) == 10


def test_a_late_event_does_not_bring_back_what_is_gone() -> None:
    store = Store()
    store.put(make_child(1))
    assert store.remove(make_child(5)) == KEY
    assert store.put(make_child(4)) is None
    assert store.remove(make_child(5)) is None
    assert version_of(store) is None


def test_an_object_that_left_the_selector_and_came_back_is_known_again() -> None:
    store = Store()
    store.put(make_child(1))
    store.remove(make_child(5))
    assert store.put(make_child(6)) == KEY


def test_a_list_ends_ghosts_but_nothing_younger_than_itself() -> None:
    store = Store()
    for number in (1, 2, 3):
        store.put(make_child(number, uid=f"child-{number}"))
    store.put(make_child(50, uid="young"))
    changed, ghosts = store.replace(kinds.SERVICE, None, [make_child(1, uid="child-1")], 40)
    assert (changed, ghosts) == ({KEY}, 2)
    assert version_of(store, "child-1") == 1
    assert version_of(store, "young") == 50


def test_a_list_of_one_namespace_or_kind_says_nothing_of_others() -> None:
    store = Store()
    store.put(make_child(1))
    assert store.replace(kinds.SERVICE, "other", [], 40) == (set(), 0)
    assert store.replace(kinds.DEPLOYMENT, None, [], 40) == (set(), 0)
    assert store.replace(kinds.SERVICE, "default", [], 40) == ({KEY}, 1)


def test_a_deleted_child_is_lost_until_it_is_back() -> None:
    store = Store()
    store.put(make_service())
    store.put(make_child(1))
    store.remove(make_child(2))
    assert store.lost(KEY) == {("Service", "m")}
    store.put(make_child(3, uid="again"))
    assert store.lost(KEY) == frozenset()


def test_what_we_deleted_ourselves_is_not_lost() -> None:
    store = Store()
    store.put(make_service())
    store.put(make_child(1))
    assert store.forget(make_child(1)) == KEY
    assert store.remove(make_child(2)) is None
    assert store.lost(KEY) == frozenset()


def test_nor_is_it_when_the_watch_tells_of_it_before_our_own_answer() -> None:
    store = Store()
    store.put(make_service())
    store.put(make_child(1))
    assert store.remove(make_child(2)) == KEY
    assert store.forget(make_child(1)) is None
    assert store.lost(KEY) == frozenset()


def test_children_are_those_that_this_owner_controls() -> None:
    store = Store()
    store.put(make_service())
    store.put(make_child(1))
    store.put(make_child(1, uid="old", owner="an owner before it"))
    children = store.children(make_service())
    assert [child["metadata"]["uid"] for child in children] == ["child"]


def test_a_child_without_our_label_is_found_by_its_owner() -> None:
    store = Store()
    stripped = make_child(1)
    del stripped["metadata"]["labels"]
    assert store.put(stripped) == KEY


def test_objects_of_nobody_are_not_kept() -> None:
    store = Store()
    stranger = make_child(1)
    del stranger["metadata"]["labels"], stranger["metadata"]["ownerReferences"]
    assert store.put(stranger) is None
    assert len(store) == 0


def test_what_no_decision_reads_is_dropped() -> None:
    store = Store()
    store.put(make_service())
    service = store.service(KEY)
    assert service is not None
    assert "managedFields" not in service["metadata"]
    assert service["metadata"]["annotations"] == {"mine": "1"}
    pod = {**make_child(1, nodeName="n1", containers=[{"name": "replica"}]), "kind": "Pod"}
    store.put(pod)
    assert store.pods(KEY)[0]["spec"] == {"nodeName": "n1"}


def test_objects_share_their_strings() -> None:
    store = Store()
    for uid in ("a", "b"):
        store.put(json.loads(json.dumps(make_child(1, uid=uid, ports=[{"protocol": "TCP"}]))))
    (key, word), (same_key, same_word) = (
        next(iter(child["spec"]["ports"][0].items())) for child in store.children(make_service())
    )
    assert key is same_key
    assert word is same_word


def test_a_namesake_made_anew_takes_the_place_of_the_one_before() -> None:
    store = Store()
    store.put(make_service(1, uid="first"))
    store.remove(make_service(2, uid="first"))
    store.put(make_service(3, uid="second"))
    service = store.service(KEY)
    assert service is not None
    assert service["metadata"]["uid"] == "second"
    assert store.service_keys() == [KEY]


@given(st.permutations(range(1, 7)), st.integers(1, 6))
def test_in_whichever_order_events_come_the_newest_stands(
    order: list[int], deleted_at: int
) -> None:
    store = Store()
    for version in order:
        if version == deleted_at:
            store.remove(make_child(version))
        else:
            store.put(make_child(version))
    assert version_of(store) == (None if deleted_at == 6 else 6)
