"""What others set in a child's spec, told by field and manager, and made ours to drop."""

from __future__ import annotations

from typing import Any

import pytest

from servewright_operator import foreign, names
from servewright_operator.store import Store

Object = dict[str, Any]
CONTAINER = 'k:{"name":"replica"}'
APPLIED: Object = {
    "f:metadata": {"f:labels": {"f:a": {}}},
    "f:spec": {
        "f:replicas": {},
        "f:template": {
            "f:spec": {
                "f:containers": {CONTAINER: {".": {}, "f:name": {}, "f:image": {}}},
                "f:volumes": {'k:{"name":"tmp"}': {".": {}, "f:emptyDir": {}, "f:name": {}}},
            }
        },
    },
}
NODE_NAME: Object = {"f:spec": {"f:template": {"f:spec": {"f:nodeName": {}}}}}
# An entry of the book as the API server keeps one, and as it is kept for a subresource.
OURS: Object = {
    "manager": names.FIELD_MANAGER,
    "operation": "Apply",
    "apiVersion": "apps/v1",
    "time": "2026-01-01T00:00:00Z",
    "fieldsType": "FieldsV1",
    "fieldsV1": APPLIED,
}
STATUS: Object = {
    **OURS,
    "manager": "kube-controller-manager",
    "operation": "Update",
    "subresource": "status",
    "fieldsV1": {"f:status": {"f:replicas": {}}},
}
SCALE: Object = {
    **STATUS,
    "subresource": "scale",
    "fieldsV1": {"f:spec": {"f:somethingElse": {}}},
}


def by(manager: str, owned: Object) -> Object:
    return {**OURS, "manager": manager, "operation": "Update", "fieldsV1": owned}


def make_live(*entries: Object) -> Object:
    owner = {"kind": "ModelService", "name": "m", "uid": "owner", "controller": True}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "m",
            "namespace": "default",
            "uid": "1",
            "resourceVersion": "7",
            "ownerReferences": [owner],
            "managedFields": list(entries),
        },
    }


def in_pod(fields: Object) -> Object:
    return {"f:spec": {"f:template": {"f:spec": fields}}}


FIELDS: list[tuple[str, Object, list[str]]] = [
    (
        "a variable more",
        in_pod({"f:containers": {CONTAINER: {"f:env": {'k:{"name":"NEW"}': {"f:value": {}}}}}}),
        ["spec.template.spec.containers[replica].env[NEW]"],
    ),
    (
        "the template's first annotation",
        {"f:spec": {"f:template": {"f:metadata": {"f:annotations": {".": {}, "f:a.io/b": {}}}}}},
        ["spec.template.metadata.annotations.a.io/b"],
    ),
    (
        "a container more, as a whole",
        in_pod({"f:containers": {'k:{"name":"x"}': {".": {}, "f:name": {}, "f:image": {}}}}),
        ["spec.template.spec.containers[x]"],
    ),
    (
        "an item by both its keys",
        {"f:spec": {"f:ports": {'k:{"port":1,"protocol":"TCP"}': {".": {}}}}},
        ["spec.ports[1/TCP]"],
    ),
    (
        "items of a set",
        {"f:spec": {"f:set": {'v:"a"': {}, 'v:"b"': {}}, "f:list": {"i:3": {}}}},
        ["spec.set", "spec.list[3]"],
    ),
    (
        "parts of what we set empty",
        in_pod(
            {"f:volumes": {'k:{"name":"tmp"}': {"f:emptyDir": {"f:medium": {}, "f:sizeLimit": {}}}}}
        ),
        [
            "spec.template.spec.volumes[tmp].emptyDir.medium",
            "spec.template.spec.volumes[tmp].emptyDir.sizeLimit",
        ],
    ),
    ("nothing where we set it too", {"f:spec": {"f:replicas": {}}}, []),
    (
        "nothing where it is a label or annotation of the child itself",
        {"f:metadata": {"f:labels": {"f:theirs": {}}, "f:annotations": {"f:b": {}}}},
        [],
    ),
]


@pytest.mark.parametrize(
    ("owned", "paths"), [case[1:] for case in FIELDS], ids=[case[0] for case in FIELDS]
)
def test_what_somebody_else_set_is_told_by_field_and_manager(
    owned: Object, paths: list[str]
) -> None:
    live = make_live(OURS, STATUS, by("kubectl-set", owned))
    assert [str(field) for field in foreign.fields(live)] == [
        f"{path} set by kubectl-set" for path in paths
    ]


def test_controllers_that_write_status_or_scale_set_nothing_foreign() -> None:
    assert foreign.fields(make_live(OURS, STATUS, SCALE)) == []


def test_what_we_wrote_by_other_means_is_ours() -> None:
    live = make_live(OURS, by(names.FIELD_MANAGER, NODE_NAME), by("other", NODE_NAME))
    assert foreign.fields(live) == []


def test_without_an_entry_of_ours_all_is_foreign() -> None:
    (field,) = foreign.fields(make_live(by("kubectl-edit", APPLIED)))
    assert field == ("spec", "kubectl-edit")


def test_adoption_makes_it_ours_and_takes_the_hash_away() -> None:
    theirs = by("kubectl-set", {"f:metadata": {"f:labels": {"f:b": {}}}, **NODE_NAME})
    live = make_live(by("gitops", NODE_NAME), OURS, theirs, STATUS, SCALE)
    adopted = foreign.adoption(live)["metadata"]
    assert adopted["resourceVersion"] == "7"  # or someone else's edit would be lost from the book
    assert adopted["annotations"] == {names.APPLIED_ANNOTATION: None}
    after = make_live(*adopted["managedFields"])
    assert foreign.fields(after) == []
    by_manager = {
        (entry["manager"], entry.get("subresource")): entry["fieldsV1"]
        for entry in adopted["managedFields"]
    }
    assert by_manager["kubectl-set", None] == {"f:metadata": {"f:labels": {"f:b": {}}}}
    assert by_manager["kube-controller-manager", "status"] == STATUS["fieldsV1"]
    ours = by_manager[names.FIELD_MANAGER, None]
    assert ours["f:metadata"] == APPLIED["f:metadata"]
    assert ours["f:spec"]["f:template"]["f:spec"].keys() == {
        "f:containers",
        "f:volumes",
        "f:nodeName",
    }


def test_of_an_item_that_is_not_ours_all_is_adopted() -> None:
    """A part of it alone may not be fit to stay: a webhook's container without its image."""
    theirs = in_pod(
        {"f:containers": {CONTAINER: {"f:tty": {}}, 'k:{"name":"side"}': {"f:image": {}}}}
    )
    adopted = foreign.adoption(make_live(OURS, by("kubectl-set", theirs)))["metadata"]
    (_, ours) = adopted["managedFields"]
    containers = ours["fieldsV1"]["f:spec"]["f:template"]["f:spec"]["f:containers"]
    assert containers[CONTAINER] == {".": {}, "f:name": {}, "f:image": {}, "f:tty": {}}
    assert containers['k:{"name":"side"}'] == {".": {}, "f:image": {}}


def test_adoption_changes_nothing_of_what_it_is_given() -> None:
    live, again = (make_live(OURS, by("kubectl-set", NODE_NAME)) for _ in range(2))
    foreign.adoption(live)
    assert live == again


def test_adoption_opens_an_entry_of_ours_where_there_is_none() -> None:
    (_, ours) = foreign.adoption(make_live(by("kubectl-edit", APPLIED)))["metadata"][
        "managedFields"
    ]
    assert (ours["manager"], ours["operation"]) == (names.FIELD_MANAGER, "Apply")
    assert ours["fieldsV1"] == {"f:spec": APPLIED["f:spec"]}


@pytest.mark.parametrize("is_edited", [False, True])
def test_the_book_is_kept_only_where_somebody_else_set_something(is_edited: bool) -> None:
    store = Store()
    store.put(make_live(OURS, STATUS, *([by("kubectl-set", NODE_NAME)] if is_edited else [])))
    known = store.get("1")
    assert known is not None
    assert bool(foreign.fields(known)) is is_edited
    assert ("managedFields" in known["metadata"]) is is_edited
