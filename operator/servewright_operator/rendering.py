"""What the operator would apply, as YAML, for people and pipelines that want to see it first.

The operator's own builders, given a ModelService that no cluster knows yet: so there is no uid to
own the children by, and no key to put into the Secrets that are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from servewright_api.manifest import ManifestError
from servewright_api.modelservice import ModelService
from servewright_api.revision import revision
from servewright_api.rules import broken_rules
from servewright_api.version import __version__
from servewright_operator import desired
from servewright_operator.desired import pod, secrets
from servewright_operator.names import Key
from servewright_operator.objects import Object, Observed, Rollout, StoredRevision
from servewright_operator.settings import PodDefaults

# What the chart has replicas run unless told otherwise.
DEFAULT_IMAGE = f"localhost/servewright-runtime:{__version__}"
DEFAULT_CUDA_IMAGE = f"localhost/servewright-runtime-cuda:{__version__}"

_HEAD = """\
# {title}, as the operator applies it the first time. Left out: ownerReferences, as
# only the cluster knows the ModelService's uid, and the hash that marks what was applied.
"""
_NO_KEY = "# Left out: data. The operator makes a random key once and keeps it.\n"


def render(services: Sequence[ModelService], pods: PodDefaults, *, pod_monitors: bool) -> str:
    """The children of new ModelServices, as YAML documents with comments.

    Raises ManifestError for what no cluster serves.
    """
    problems = [
        f"{service.title}: {path}: {text}"
        for service in services
        for path, text in broken_rules(service, in_cluster=True)
    ]
    if problems:
        raise ManifestError(problems)
    return "---\n".join(
        document for service in services for document in _documents(service, pods, pod_monitors)
    )


def _documents(service: ModelService, pods: PodDefaults, pod_monitors: bool) -> Iterator[str]:
    head = _HEAD.format(title=service.title)
    for child in _children(service, pods, pod_monitors):
        comment = _NO_KEY if child["kind"] == "Secret" else ""
        text = yaml.dump(child, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        yield head + comment + text
        head = ""


def _children(service: ModelService, pods: PodDefaults, pod_monitors: bool) -> Iterator[Object]:
    """The desired children of a first revision, less what only a cluster can tell."""
    name = revision(service)
    stored = StoredRevision(name, 1, pod.template(service, name, pods))
    rollout = Rollout(name, target=name, kept=[stored], last_good=None, failed=None, why="")
    observed = Observed(
        Key(service.metadata.namespace, service.metadata.name),
        {"metadata": {"uid": ""}},
        secrets=dict.fromkeys(secrets.wanted([stored.template]), ""),
        has_pod_monitors=pod_monitors,
    )
    for child in desired.build(service, rollout, observed):
        del child["metadata"]["ownerReferences"]
        if child["kind"] == "Secret":
            del child["data"]
        yield child


class _Dumper(yaml.SafeDumper):
    """What occurs twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
