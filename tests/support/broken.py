"""One manifest for each rule over several fields that breaks it, and what makes it good.

Shared by those who ask Python and those who ask an API server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from servewright_api.rules import RULES, Rule

_HTTPS = {"spec.model.source": "https://host/x"}
_DIGEST = "sha256:" + "0a" * 32
_GPU = {"type": "nvidia"}


@dataclass(frozen=True)
class Broken:
    """A manifest by its changes to `make_manifest`, and what is said of it."""

    why: str
    words: str  # of the rule's message
    path: str  # of the field that is told
    change: Mapping[str, Any]
    cure: Mapping[str, Any]  # further changes

    @property
    def rule(self) -> Rule:
        """The rule of that path whose message holds the words."""
        path = re.sub(r"\d+", "", self.path)
        (found,) = (
            rule
            for rule in RULES
            if self.words in rule.message
            and path in (rule.at, ".".join(filter(None, (rule.at, rule.field))))
        )
        return found


def _source(why: str, words: str, source: str, cure: str = "https://host/x") -> Broken:
    changed, cured = {"spec.model.source": source}, {"spec.model.source": cure}
    return Broken(why, words, "spec.model.source", changed, cured)


def _pod(why: str, words: str, path: str, field: str, value: Any, cure: Any) -> Broken:
    changed = {**_HTTPS, f"spec.pod.{field}": value}
    return Broken(why, words, f"spec.pod.{path}", changed, {f"spec.pod.{field}": cure})


_BOTH = "both of secretKeyRef and configMapKeyRef"
_KEY = {"name": "proxy", "key": "url"}
_SPREAD = {"topologyKey": "zone"}
_RESERVED = {"servewright.io/revision": "x"}

BROKEN = (
    _source("an unknown scheme", "does not begin with", "ftp://host/x"),
    _source("no scheme", "does not begin with", "/models/x.gguf"),
    _source("a scheme of a later version", "are planned", "hf://org/model"),
    _source("a blank in the source", "a blank or a control", "https://host/a b"),
    _source("a line end in the source", "a blank or a control", "https://host/x\n"),
    _source("a file of a pod's node", "the local runner alone", "file:///models/x.gguf"),
    Broken(
        "a file with a host",
        "does not name a file on this machine",
        "spec.model.source",
        {"spec.model.source": "file://models/x.gguf"},
        _HTTPS,
    ),
    _source("a distribution without its version", "DIST==VERSION", "pypi://dist/x.gguf"),
    _source("a version that is a pattern", "DIST==VERSION", "pypi://dist==1.*/x.gguf"),
    _source("a claim without a path", "pvc://CLAIM/PATH", "pvc://claim", "pvc://claim/x"),
    _source("a claim in capitals", "pvc://CLAIM/PATH", "pvc://Claim/x", "pvc://claim/x"),
    _source("a path out of the claim", "an empty part", "pvc://claim/../x", "pvc://claim/x"),
    _source("a path out of the wheel", "an empty part", "pypi://d==1/a/..", "pypi://d==1/a/x"),
    _source("two slashes in the path", "an empty part", "pvc://claim/a//x", "pvc://claim/a/x"),
    _source("a password in the source", "user name or password", "https://me:hunter2@host/x"),
    _source("a host without a file", "a host and a file", "https://host/"),
    _source("a port that does not exist", "a host and a file", "https://host:65536/x"),
    Broken(
        "plain http without a digest",
        "http:// is read only with a digest",
        "spec.model.digest",
        {"spec.model.source": "http://host/x"},
        {"spec.model.digest": _DIGEST},
    ),
    Broken(
        "credentials that nobody sends",
        "only https:// sources take credentials",
        "spec.model.credentialsSecret",
        {"spec.model.source": "pvc://claim/x", "spec.model.credentialsSecret": {"name": "token"}},
        _HTTPS,
    ),
    Broken(
        "credentials in a Secret that the operator makes",
        "the operator makes, changes and deletes itself",
        "spec.model.credentialsSecret.name",
        {**_HTTPS, "spec.model.credentialsSecret": {"name": "mine-api-keys"}},
        {"spec.model.credentialsSecret": {"name": "yours-api-keys"}},
    ),
    Broken(
        "keys in the Secret that the operator makes for them",
        "the operator makes, changes and deletes itself",
        "spec.access.secretRef.name",
        {**_HTTPS, "spec.access.secretRef": {"name": "mine-api-keys"}},
        {"spec.access.secretRef": {"name": "mine"}},
    ),
    Broken(
        "keys in the operator's own Secret",
        "the operator makes, changes and deletes itself",
        "spec.access.secretRef.name",
        {**_HTTPS, "spec.access.secretRef": {"name": "mine-probe"}},
        {"spec.access.secretRef": {"name": "mine-probes"}},
    ),
    Broken(
        "keys that nobody asks for",
        "access.mode is Open",
        "spec.access.secretRef",
        {**_HTTPS, "spec.access.mode": "Open", "spec.access.secretRef": {"name": "keys"}},
        {"spec.access.mode": "ApiKey"},
    ),
    Broken(
        "an answer as long as the context",
        "counts the prompt too",
        "spec.limits.maxOutputTokens",
        {**_HTTPS, "spec.engine.maxModelLen": 128, "spec.limits.maxOutputTokens": 128},
        {"spec.limits.maxOutputTokens": 127},
    ),
    Broken(
        "a model split over two GPUs",
        "splits no model over several GPUs",
        "spec.accelerator.count",
        {**_HTTPS, "spec.accelerator": {"type": "nvidia", "count": 2}},
        {"spec.accelerator": {"type": "nvidia", "count": 1}},
    ),
    Broken(
        "a GPU that nothing computes on",
        "leave the accelerator idle",
        "spec.engine.kernel",
        {**_HTTPS, "spec.accelerator": _GPU, "spec.engine.kernel": "Reference"},
        {"spec.engine.kernel": "Fused"},
    ),
    Broken(
        "more CPU asked for than allowed",
        "more than limits.cpu",
        "spec.resources.requests.cpu",
        {**_HTTPS, "spec.resources.limits.cpu": "0.2"},
        {"spec.resources.requests.cpu": "200m"},
    ),
    Broken(
        "more memory asked for than allowed by default",
        "more than limits.memory",
        "spec.resources.requests.memory",
        {**_HTTPS, "spec.resources.requests.memory": "2049Mi"},
        {"spec.resources.limits.memory": "3Gi"},
    ),
    Broken(
        "a rollout that can replace nothing",
        "both 0",
        "spec.rollout.maxUnavailable",
        {**_HTTPS, "spec.rollout.maxSurge": "0%"},
        {"spec.rollout.maxUnavailable": 1},
    ),
    _pod("a label of the operator's", "the prefix", "labels", "labels", _RESERVED, {"x.io/a": "x"}),
    _pod(
        *("an annotation of the operator's", "the prefix", "annotations", "annotations"),
        {"app.kubernetes.io/name": "x"},
        {"a": "x"},
    ),
    _pod(
        *("a pull secret twice", "same name;", "imagePullSecrets", "imagePullSecrets"),
        [{"name": "a"}, {"name": "a"}],
        [{"name": "a"}, {"name": "b"}],
    ),
    _pod(
        *("a zone spread over twice", "whenUnsatisfiable;", "topologySpread", "topologySpread"),
        [_SPREAD, {**_SPREAD, "whenUnsatisfiable": "ScheduleAnyway"}],
        [_SPREAD, {**_SPREAD, "whenUnsatisfiable": "DoNotSchedule"}],
    ),
    _pod(
        *("a variable twice", "same name;", "env", "env"),
        [{"name": "A", "value": ""}, {"name": "A", "value": ""}],
        [{"name": "A", "value": ""}, {"name": "B", "value": ""}],
    ),
    _pod(
        *("a variable of the operator's", "begins with SERVEWRIGHT_", "env[0].name", "env"),
        [{"name": "SERVEWRIGHT_MANIFEST", "value": "x"}],
        [{"name": "HTTPS_PROXY", "value": "x"}],
    ),
    _pod(
        *("another home", "begins with SERVEWRIGHT_", "env[0].name", "env"),
        [{"name": "HOME", "value": "/x"}],
        [{"name": "HOMES", "value": "/x"}],
    ),
    _pod(
        *("a variable without a value", "one of them must be given", "env[0].value", "env"),
        [{"name": "A"}],
        [{"name": "A", "value": ""}],
    ),
    _pod(
        *("a variable of two values", "one of them must be given", "env[0].value", "env"),
        [{"name": "A", "value": "", "valueFrom": {"secretKeyRef": _KEY}}],
        [{"name": "A", "valueFrom": {"secretKeyRef": _KEY}}],
    ),
    _pod(
        *("a value from nowhere", _BOTH, "env[0].valueFrom", "env"),
        [{"name": "A", "valueFrom": {}}],
        [{"name": "A", "valueFrom": {"configMapKeyRef": _KEY}}],
    ),
    _pod(
        *("a value from two places", _BOTH, "env[0].valueFrom", "env"),
        [{"name": "A", "valueFrom": {"secretKeyRef": _KEY, "configMapKeyRef": _KEY}}],
        [{"name": "A", "valueFrom": {"secretKeyRef": _KEY}}],
    ),
    _pod(
        *("a toleration of nothing", "only the operator Exists", "tolerations[0].key"),
        "tolerations",
        [{"value": "a"}],
        [{"key": "team", "value": "a"}],
    ),
    _pod(
        *("a toleration of any and one value", "Exists takes none", "tolerations[0].value"),
        "tolerations",
        [{"key": "team", "operator": "Exists", "value": "a"}],
        [{"key": "team", "operator": "Exists"}],
    ),
    _pod(
        *("an end that never comes", "NoExecute has an end", "tolerations[0].tolerationSeconds"),
        "tolerations",
        [{"key": "team", "operator": "Exists", "tolerationSeconds": 5}],
        [{"key": "team", "operator": "Exists", "tolerationSeconds": 5, "effect": "NoExecute"}],
    ),
)
