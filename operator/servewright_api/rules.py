"""Rules that the schema's bounds cannot say, each for Python and, in CEL, for the API server.

A rule is a predicate on one value of the schema, `self` in its CEL, and one sentence that names
the cure. Both texts stand side by side; tests ask a real API server whether they agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic.alias_generators import to_snake

from servewright_api.modelservice import ModelService
from servewright_api.quantity import parse_quantity
from servewright_api.sources import SHAPES, Shape
from servewright_api.values import API_KEYS_SUFFIX, PROBE_SUFFIX, is_none

Finding = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Rule:
    """What must hold of the value at a path.

    at: the path; "spec.pod.env[]" is each entry of the list, "" the whole. Absent values break no
    rule.
    field: which field below it the sentence is about, "" for the value itself.
    cel: None where the schema itself says so to the API server.
    """

    at: str
    field: str
    message: str
    holds: Callable[[Any], bool]
    cel: str | None
    in_cluster_alone: bool = False


def broken_rules(service: ModelService, *, in_cluster: bool = False) -> Iterator[Finding]:
    """All that is wrong with `service`: (field path, sentence)."""
    for rule in RULES:
        if in_cluster or not rule.in_cluster_alone:
            for path, value in _values(service, rule.at.split(".") if rule.at else ()):
                if not rule.holds(value):
                    where = ".".join(filter(None, (path, rule.field)))
                    yield where, f"{rule.message}."


def _values(value: Any, parts: Sequence[str], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value at a path of camelCase names, with its path; none where it is absent."""
    if value is None:
        return
    if not parts:
        yield path, value
        return
    name = parts[0].removesuffix("[]")
    inner, here = getattr(value, to_snake(name)), f"{path}.{name}".lstrip(".")
    if name == parts[0]:
        yield from _values(inner, parts[1:], here)
    else:
        for index, entry in enumerate(inner):
            yield from _values(entry, parts[1:], f"{here}[{index}]")


def _shape_rule(shape: Shape) -> Rule:
    pattern = re.compile(shape.pattern)

    def holds(source: str) -> bool:
        found = pattern.search(source) is not None
        return not source.startswith(shape.prefix) or found == shape.matches

    cel = f"{'' if shape.matches else '!'}self.matches(r'{shape.pattern}')"
    if shape.prefix:
        cel = f"!self.startsWith('{shape.prefix}') || {cel}"
    return Rule("spec.model.source", "", shape.message, holds, cel)


def _within(amount: str) -> Rule:
    """A request that is not above its limit."""

    def holds(resources: Any) -> bool:
        request, limit = getattr(resources.requests, amount), getattr(resources.limits, amount)
        return limit is None or parse_quantity(request) <= parse_quantity(limit)

    request, limit = f"string(self.requests.{amount})", f"string(self.limits.{amount})"
    return Rule(
        "spec.resources",
        f"requests.{amount}",
        f"is more than limits.{amount}, its default included; raise the limit or lower the request",
        holds,
        f"!has(self.limits.{amount}) || !isQuantity({request}) || !isQuantity({limit}) || "
        f"quantity({request}).compareTo(quantity({limit})) <= 0",
    )


def _own_prefixes(group: str) -> Rule:
    return Rule(
        f"spec.pod.{group}",
        "",
        "uses the prefix servewright.io/ or app.kubernetes.io/, which the operator sets itself; "
        "choose another",
        lambda keys: not any(k.startswith(("servewright.io/", "app.kubernetes.io/")) for k in keys),
        "!self.exists(k, k.startsWith('servewright.io/') || k.startsWith('app.kubernetes.io/'))",
    )


def _not_made_by_us(group: str, field: str) -> Rule:
    """A Secret that the operator makes belongs to it: it writes and deletes it as it needs."""

    def holds(service: ModelService) -> bool:
        secret = getattr(getattr(service.spec, group), to_snake(field))
        name = service.metadata.name
        return secret is None or secret.name not in (name + API_KEYS_SUFFIX, name + PROBE_SUFFIX)

    path = f"spec.{group}.{field}"
    made = ", ".join(f"self.metadata.name + '{end}'" for end in (API_KEYS_SUFFIX, PROBE_SUFFIX))
    return Rule(
        "",
        f"{path}.name",
        f"is NAME{API_KEYS_SUFFIX} or NAME{PROBE_SUFFIX}, which the operator makes, changes and "
        "deletes itself; give your Secret another name",
        holds,
        f"!has(self.{path}) || !(self.{path}.name in [{made}])",
    )


def _distinct(field: str, *keys: str) -> Rule:
    """No two entries of a list are the same in `keys`. Its type tells the API server."""

    def holds(pod: Any) -> bool:
        entries = getattr(pod, to_snake(field))
        ids = {tuple(getattr(entry, to_snake(key)) for key in keys) for entry in entries}
        return len(ids) == len(entries)

    message = f"holds two entries of the same {' and '.join(keys)}; keep one"
    return Rule("spec.pod", field, message, holds, cel=None)


RULES: tuple[Rule, ...] = (
    *map(_shape_rule, SHAPES),
    Rule(
        "spec.model.source",
        "",
        "file:// is for the local runner alone, as a pod's node has no file of yours; use pvc://, "
        "https:// or pypi://",
        lambda source: not source.startswith("file:"),
        "!self.startsWith('file:')",
        in_cluster_alone=True,
    ),
    Rule(
        "spec.model",
        "digest",
        "is missing, and http:// is read only with a digest; give sha256:... of the file or use "
        "https://",
        lambda model: not model.source.startswith("http://") or model.digest is not None,
        "!self.source.startsWith('http://') || has(self.digest)",
    ),
    Rule(
        "spec.model",
        "credentialsSecret",
        "is given, but only https:// sources take credentials; remove it or use https://",
        lambda model: model.credentials_secret is None or model.source.startswith("https://"),
        "!has(self.credentialsSecret) || self.source.startsWith('https://')",
    ),
    _not_made_by_us("model", "credentialsSecret"),
    _not_made_by_us("access", "secretRef"),
    Rule(
        "spec.access",
        "secretRef",
        "names API keys, but access.mode is Open; remove one of the two",
        lambda access: access.mode != "Open" or access.secret_ref is None,
        "self.mode != 'Open' || !has(self.secretRef)",
    ),
    Rule(
        "spec",
        "limits.maxOutputTokens",
        "is not below engine.maxModelLen, which counts the prompt too; choose less",
        lambda spec: (
            spec.limits.max_output_tokens is None
            or spec.engine.max_model_len is None
            or spec.limits.max_output_tokens < spec.engine.max_model_len
        ),
        "!has(self.limits.maxOutputTokens) || !has(self.engine.maxModelLen) || "
        "self.limits.maxOutputTokens < self.engine.maxModelLen",
    ),
    Rule(
        "spec.accelerator",
        "count",
        "is above 1, but this version splits no model over several GPUs; use 1, and replicas for "
        "more of them",
        lambda accelerator: accelerator.count == 1,
        "self.count == 1",
    ),
    Rule(
        "spec",
        "engine.kernel",
        "is Reference, which computes on the CPU and would leave the accelerator idle; use Auto or "
        "Fused, or remove accelerator",
        lambda spec: spec.accelerator is None or spec.engine.kernel != "Reference",
        "!has(self.accelerator) || self.engine.kernel != 'Reference'",
    ),
    _within("cpu"),
    _within("memory"),
    Rule(
        "spec.rollout",
        "maxUnavailable",
        "and maxSurge are both 0, so no pod could ever be replaced; let one of them be 1",
        lambda rollout: not (is_none(rollout.max_surge) and is_none(rollout.max_unavailable)),
        "!(string(self.maxSurge) in ['0', '0%'] && string(self.maxUnavailable) in ['0', '0%'])",
    ),
    _own_prefixes("labels"),
    _own_prefixes("annotations"),
    _distinct("imagePullSecrets", "name"),
    _distinct("topologySpread", "topologyKey", "whenUnsatisfiable"),
    _distinct("env", "name"),
    Rule(
        "spec.pod.env[].name",
        "",
        "is HOME or begins with SERVEWRIGHT_ or RAY_, which the operator sets itself; remove it",
        lambda name: name != "HOME" and not name.startswith(("SERVEWRIGHT_", "RAY_")),
        "self != 'HOME' && !self.startsWith('SERVEWRIGHT_') && !self.startsWith('RAY_')",
    ),
    Rule(
        "spec.pod.env[]",
        "value",
        "and valueFrom exclude each other, and one of them must be given; keep one",
        lambda env: (env.value is None) != (env.value_from is None),
        "has(self.value) != has(self.valueFrom)",
    ),
    Rule(
        "spec.pod.env[].valueFrom",
        "",
        "names neither or both of secretKeyRef and configMapKeyRef; give one of them",
        lambda source: (source.secret_key_ref is None) != (source.config_map_key_ref is None),
        "has(self.secretKeyRef) != has(self.configMapKeyRef)",
    ),
    Rule(
        "spec.pod.tolerations[]",
        "key",
        "is missing, and only the operator Exists goes without; give the key or use Exists",
        lambda toleration: toleration.operator == "Exists" or toleration.key is not None,
        "self.operator == 'Exists' || has(self.key)",
    ),
    Rule(
        "spec.pod.tolerations[]",
        "value",
        "is given, but the operator Exists takes none; remove it or use Equal",
        lambda toleration: toleration.operator == "Equal" or not toleration.value,
        "self.operator == 'Equal' || !has(self.value) || self.value == ''",
    ),
    Rule(
        "spec.pod.tolerations[]",
        "tolerationSeconds",
        "is given, but only the effect NoExecute has an end; remove it or use NoExecute",
        lambda toleration: (
            toleration.toleration_seconds is None or toleration.effect == "NoExecute"
        ),
        "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
    ),
)
