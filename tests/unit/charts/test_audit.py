"""The comparison of rights with requests, which the chart's RBAC is tested by."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.audit import Access, Document, Grant, compare, grants, requests

USER = "system:serviceaccount:ours:operator"
LIST_PODS = Access("list", "", "pods", "", "")


def event(verb: str, resource: str, *, user: str = USER, code: int = 200, **asked: str) -> str:
    """A line of an audit log."""
    return json.dumps(
        {
            "verb": verb,
            "user": {"username": user},
            "objectRef": {"resource": resource, **asked},
            "responseStatus": {"code": code},
        }
    )


def role(kind: str, *rules: dict[str, Any], namespace: str = "") -> list[Document]:
    """A role and its binding to the operator."""
    metadata = {"name": "x"} | ({"namespace": namespace} if namespace else {})
    return [
        {"kind": kind, "metadata": metadata, "rules": list(rules)},
        {
            "kind": f"{kind}Binding",
            "metadata": metadata,
            "roleRef": {"kind": kind, "name": "x"},
            "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": "ours"}],
        },
    ]


def rule(verb: str, resource: str, **more: Any) -> dict[str, Any]:
    return {"apiGroups": [""], "resources": [resource], "verbs": [verb], **more}


def test_a_request_is_known_by_verb_resource_place_and_name() -> None:
    log = [event("get", "pods", subresource="log", namespace="a", name="p", apiVersion="v1")]
    assert requests(log, "ours", "operator") == {Access("get", "", "pods/log", "a", "p")}


def test_an_apply_that_made_something_needs_create_too() -> None:
    made = event("patch", "secrets", namespace="a", name="s", code=201)
    changed = event("patch", "services", namespace="a", name="s")
    assert {(a.verb, a.resource) for a in requests([made, changed], "ours", "operator")} == {
        ("patch", "secrets"),
        ("create", "secrets"),
        ("patch", "services"),
    }


def test_what_others_ask_and_what_is_open_to_all_does_not_count() -> None:
    version = json.dumps({"verb": "get", "user": {"username": USER}, "requestURI": "/version"})
    log = [event("list", "pods", user="admin"), version]
    assert requests(log, "ours", "operator") == set()


def test_rights_are_those_of_the_bindings_that_name_the_account() -> None:
    documents = role("ClusterRole", rule("list", "pods"))
    assert grants(documents, "ours", "operator") == {Grant("list", "", "pods", "")}
    assert grants(documents, "ours", "other") == set()
    assert grants(documents, "theirs", "operator") == set()


@pytest.mark.parametrize(
    ("documents", "access", "allowed"),
    [
        (role("ClusterRole", rule("list", "pods")), LIST_PODS, True),
        (role("ClusterRole", rule("list", "pods")), LIST_PODS._replace(namespace="a"), True),
        (role("Role", rule("list", "pods"), namespace="a"), LIST_PODS, False),
        (
            role("Role", rule("list", "pods"), namespace="a"),
            LIST_PODS._replace(namespace="a"),
            True,
        ),
        (
            role("Role", rule("list", "pods"), namespace="a"),
            LIST_PODS._replace(namespace="b"),
            False,
        ),
        (role("ClusterRole", rule("watch", "pods")), LIST_PODS, False),
        (role("ClusterRole", rule("list", "pods/log")), LIST_PODS, False),
        (role("ClusterRole", rule("list", "pods", apiGroups=["x"])), LIST_PODS, False),
        (role("ClusterRole", rule("list", "pods", resourceNames=["p"])), LIST_PODS, False),
        (
            role("ClusterRole", rule("list", "pods", resourceNames=["p"])),
            LIST_PODS._replace(name="p"),
            True,
        ),
    ],
    ids=[
        "a ClusterRole allows everywhere",
        "a ClusterRole allows in a namespace",
        "a Role allows no request to the whole cluster",
        "a Role allows in its namespace",
        "a Role allows in no other namespace",
        "another verb is another right",
        "a subresource is another right",
        "another group is another right",
        "a right on one name is none on all",
        "a right on one name",
    ],
)
def test_a_right_that_lacks_and_one_that_nobody_needs_are_told(
    documents: list[Document], access: Access, allowed: bool
) -> None:
    granted = grants(documents, "ours", "operator")
    assert compare(granted, {access}) == ((set(), set()) if allowed else ({access}, granted))
