"""Every name that Kubernetes sees of us: labels, annotations, children, ports.

Selectors are immutable, so the labels of a selector never change.
"""

from __future__ import annotations

from typing import NamedTuple

import servewright_api
from servewright_api import values

FIELD_MANAGER = "servewright-operator"
PREFIX = "servewright.io/"

# Labels of every child.
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
SERVICE_LABEL = PREFIX + "modelservice"  # the owner's name
# Of pods and ControllerRevisions besides.
REVISION_LABEL = PREFIX + "revision"
# What kopf and LIST select by, server-side.
SELECTOR = f"{MANAGED_BY_LABEL}={FIELD_MANAGER}"

# Of a ModelService: a new value asks for a new revision with today's template and image.
RESTARTED_AT_ANNOTATION = servewright_api.RESTARTED_AT_ANNOTATION
# Of a child: hash of what was applied, so that a field that is no longer wanted is seen.
APPLIED_ANNOTATION = PREFIX + "applied"

HTTP_PORT, ADMIN_PORT = 8000, 9000
HTTP_PORT_NAME, ADMIN_PORT_NAME = "http", "admin"

REPLICA_CONTAINER, FETCH_CONTAINER = "replica", "fetch"

# The longest name of a ModelService: a ControllerRevision's is eleven longer and a label's value.
MAX_NAME = values.MAX_NAME

# In the Secret `NAME-probe`, and as a file beside the users' keys.
PROBE_KEY = "servewright-probe"
# In the Secret `NAME-api-keys`, made when access.mode is ApiKey and no secretRef is given.
API_KEY = "default"


class Key(NamedTuple):
    """Which ModelService."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def labels(name: str) -> dict[str, str]:
    """Labels of every child; those of the Deployment's selector too."""
    return {
        "app.kubernetes.io/name": "servewright",
        "app.kubernetes.io/instance": name,
        MANAGED_BY_LABEL: FIELD_MANAGER,
        SERVICE_LABEL: name,
    }


def selector(name: str) -> dict[str, str]:
    """What a Deployment, Service, policy or budget selects the pods of a ModelService by."""
    return {SERVICE_LABEL: name, MANAGED_BY_LABEL: FIELD_MANAGER}


def revision_object(name: str, revision: str) -> str:
    """Name of the ControllerRevision that holds a revision's pod template."""
    return f"{name}-{revision}"


def probe_secret(name: str) -> str:
    """Name of the Secret with the operator's own key."""
    return name + values.PROBE_SUFFIX


def api_keys_secret(name: str) -> str:
    """Name of the Secret with the key that is made when the user names none."""
    return name + values.API_KEYS_SUFFIX


def service_url(key: Key) -> str:
    """The Service, for callers in the cluster."""
    return f"http://{key.name}.{key.namespace}.svc:{HTTP_PORT}"


def openai_url(key: Key) -> str:
    """The base URL that an OpenAI client takes."""
    return f"{service_url(key)}/v1"
