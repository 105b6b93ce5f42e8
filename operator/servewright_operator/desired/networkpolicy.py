"""What may reach a replica, and what it may reach: the way to its model and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from servewright_operator import names
from servewright_operator.desired import pod
from servewright_operator.desired.child import Owner, child
from servewright_operator.objects import Object

# 5353: where the DNS of OpenShift listens behind its Service's port 53.
_DNS = [{"protocol": protocol, "port": port} for port in (53, 5353) for protocol in ("UDP", "TCP")]
_DEFAULT_PORTS = {"http": 80, "https": 443, "pypi": 443}
# Variables by which proxies and package indexes are given.
_ROUTES = re.compile(r".*_PROXY|PIP_.*", re.IGNORECASE)
_ANY_PORT = 0


def build(owner: Owner, templates: Iterable[Object]) -> Object:
    """NetworkPolicy NAME, for pods of these templates."""
    ports = sorted({port for template in templates for port in _ports_out(template)})
    return {
        **child("networking.k8s.io/v1", "NetworkPolicy", owner),
        "spec": {
            "podSelector": {"matchLabels": names.selector(owner.key.name)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"ports": [_tcp(names.HTTP_PORT), _tcp(names.ADMIN_PORT)]}],
            "egress": [{"ports": [*_DNS, *map(_tcp, ports)]}] if ports else [],
        },
    }


def _ports_out(template: Object) -> Iterator[int]:
    """The ports that fetching needs: of the source, and of proxies and indexes on the way."""
    for container in template["spec"].get("initContainers", ()):
        variables = {variable["name"]: variable for variable in container["env"]}
        manifest = json.loads(variables[pod.MANIFEST_VARIABLE]["value"])
        source = manifest[0]["spec"]["model"]["source"]
        if source.startswith("pvc://"):
            continue
        yield _port(source)
        for name, variable in variables.items():
            if _ROUTES.fullmatch(name):
                # What a Secret or ConfigMap says is not known here.
                yield _port(variable["value"]) if "value" in variable else _ANY_PORT


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or _DEFAULT_PORTS.get(parts.scheme, 443)


def _tcp(port: int) -> Object:
    return {"protocol": "TCP"} if port == _ANY_PORT else {"protocol": "TCP", "port": port}
