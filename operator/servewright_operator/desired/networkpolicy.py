"""What may reach a replica, and what it may reach: the way to its model and nothing else."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from servewright_operator import kinds, names
from servewright_operator.desired import pod
from servewright_operator.desired.child import Owner, child
from servewright_operator.objects import Object

# 5353: where the DNS of OpenShift listens behind its Service's port 53.
_DNS = (("UDP", 53), ("TCP", 53), ("UDP", 5353), ("TCP", 5353))
_DEFAULT_PORTS = {"http": 80, "https": 443, "pypi": 443}
# Variables that lead to the source: by proxies and package indexes.
_ROUTES = re.compile(
    r"(HTTP|HTTPS|ALL)_PROXY|PIP_(PROXY|INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS)", re.IGNORECASE
)
_ANY_PORT = 0


def build(owner: Owner, templates: Iterable[Object]) -> Object:
    """NetworkPolicy NAME, for pods of these templates."""
    out = sorted({port for template in templates for port in _ports_out(template)})
    return {
        **child(kinds.NETWORK_POLICY, owner),
        "spec": {
            "podSelector": {"matchLabels": names.selector(owner.key.name)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"ports": [_port("TCP", names.HTTP_PORT), _port("TCP", names.ADMIN_PORT)]}],
            "egress": [{"ports": [_port(*dns) for dns in _DNS] + [_port("TCP", n) for n in out]}]
            if out
            else [],
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
        yield from _ports_of(source)
        for name, variable in variables.items():
            if _ROUTES.fullmatch(name):
                # What a Secret or ConfigMap says is not known here.
                is_known = "valueFrom" not in variable
                yield from _ports_of(variable.get("value", "")) if is_known else [_ANY_PORT]


def _ports_of(urls: str) -> Iterator[int]:
    """The port of each URL; what is none leads nowhere."""
    for url in urls.split():
        with contextlib.suppress(ValueError):
            parts = urlsplit(url if "://" in url else f"http://{url}")
            yield parts.port or _DEFAULT_PORTS.get(parts.scheme, 443)


def _port(protocol: str, number: int) -> Object:
    return {"protocol": protocol, **({} if number == _ANY_PORT else {"port": number})}
