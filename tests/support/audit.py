"""What a ServiceAccount may do beside what it did: RBAC objects against an API server's audit log.

Start kube-apiserver with `--audit-policy-file` (POLICY) and `--audit-log-path`, let the program run
as its ServiceAccount, then `compare` both ways: a request that no rule allows, and a rule that no
request needed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

Document = dict[str, Any]

POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
"""


class Access(NamedTuple):
    """A request as RBAC sees it."""

    verb: str
    group: str
    resource: str  # pods, pods/log
    namespace: str  # "": of the whole cluster
    name: str  # "": no object in particular


@dataclass(frozen=True)
class Grant:
    """One verb on one resource, allowed in a namespace, or ("") in all of them."""

    verb: str
    group: str
    resource: str
    namespace: str
    names: frozenset[str] = frozenset()  # empty: whatever the object is called

    def allows(self, access: Access) -> bool:
        """Whether this alone lets the request through."""
        return (
            (self.verb, self.group, self.resource) == (access.verb, access.group, access.resource)
            and self.namespace in ("", access.namespace)
            and (not self.names or access.name in self.names)
        )

    def __str__(self) -> str:
        names = f" named {', '.join(sorted(self.names))}" if self.names else ""
        where = f" in {self.namespace}" if self.namespace else ""
        return f"{self.verb} {self.resource}.{self.group}{names}{where}"


def requests(log: Iterable[str], namespace: str, service_account: str) -> set[Access]:
    """What a ServiceAccount asked for, allowed or not, from the lines of an audit log."""
    user = f"system:serviceaccount:{namespace}:{service_account}"
    found = set()
    for line in log:
        event = json.loads(line)
        if event["user"]["username"] != user or "objectRef" not in event:
            continue  # /version and the like are open to everyone
        asked = event["objectRef"]
        resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
        access = Access(
            event["verb"],
            asked.get("apiGroup", ""),
            resource,
            asked.get("namespace", ""),
            asked.get("name", ""),
        )
        found.add(access)
        # Server-side apply of what was not there needs the right to create besides.
        if access.verb == "patch" and event.get("responseStatus", {}).get("code") == 201:
            found.add(access._replace(verb="create"))
    return found


def grants(documents: Collection[Document], namespace: str, service_account: str) -> set[Grant]:
    """What the bindings among rendered documents allow a ServiceAccount."""
    subject = {"kind": "ServiceAccount", "name": service_account, "namespace": namespace}
    return {
        grant
        for binding in documents
        if binding["kind"] in ("RoleBinding", "ClusterRoleBinding")
        and subject in binding["subjects"]
        for grant in _granted(documents, binding)
    }


def _granted(documents: Collection[Document], binding: Document) -> Iterable[Grant]:
    reference = binding["roleRef"]
    where = binding["metadata"].get("namespace", "")
    role_namespace = where if reference["kind"] == "Role" else ""
    role = next(
        document
        for document in documents
        if document["kind"] == reference["kind"]
        and document["metadata"]["name"] == reference["name"]
        and document["metadata"].get("namespace", "") == role_namespace
    )
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    names = frozenset(rule.get("resourceNames", ()))
                    yield Grant(verb, group, resource, where, names)


def compare(
    granted: Collection[Grant], asked: Collection[Access]
) -> tuple[set[Access], set[Grant]]:
    """(requests that nothing allows, grants that no request needed)"""
    missing = {access for access in asked if not any(grant.allows(access) for grant in granted)}
    unused = {grant for grant in granted if not any(grant.allows(access) for access in asked)}
    return missing, unused
