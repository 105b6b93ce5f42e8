"""The CustomResourceDefinition of ModelService, generated from servewright_api's types.

    python -m servewright_operator.crdgen            write charts/servewright-crds
    python -m servewright_operator.crdgen --check    exit code 1 if it is out of date

pydantic writes JSON schema; the API server wants a structural one: nothing referenced, no null,
no closed objects (it prunes or refuses unknown fields itself). Patterns become rules in CEL, since
those say in words what is wanted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from servewright_api import API_VERSION, GROUP, KIND, ModelService
from servewright_api.explain import PATTERN_WORDS
from servewright_api.rules import RULES, Rule
from servewright_operator.crdstatus import STATUS

Schema = dict[str, Any]

PLURAL = "modelservices"
TEMPLATE = Path("charts/servewright-crds/templates/modelservices.yaml")
_HEADER = "# Written by `make gen` from servewright_api's types, not by hand.\n"
_COLUMNS = (
    ("Model", "string", ".status.model.name"),
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status'),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason'),
    ("Replicas", "integer", ".status.readyReplicas"),
    ("Revision", "string", ".status.revision"),
    ("URL", "string", ".status.endpoints.openai"),
    ("Age", "date", ".metadata.creationTimestamp"),
)
# Of `kubectl get -o wide` besides.
_WIDE_COLUMNS = (("Source", "string", ".spec.model.source"),)
# What other tools read and the API server does not know.
_NOISE = ("title", "additionalProperties", "propertyNames")


def crd() -> Schema:
    """The whole object."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{PLURAL}.{GROUP}",
            # Helm removes charts, not people's ModelServices.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["msvc"],
                "categories": ["servewright"],
            },
            "versions": [
                {
                    "name": API_VERSION.rpartition("/")[2],
                    "served": True,
                    "storage": True,
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path}
                        for name, kind, path in _COLUMNS
                    ]
                    + [
                        {"name": name, "type": kind, "jsonPath": path, "priority": 1}
                        for name, kind, path in _WIDE_COLUMNS
                    ],
                    "schema": {"openAPIV3Schema": schema()},
                }
            ],
        },
    }


def schema() -> Schema:
    """The structural schema of a ModelService."""
    document = ModelService.model_json_schema(by_alias=True)
    types = document["$defs"]
    name = types["Metadata"]["properties"]["name"]
    root = {
        "description": "One model, served.",
        "type": "object",
        "required": ["spec"],
        "properties": {
            # The API server knows these three, and lets nothing more be said about them.
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _structural(document["properties"]["spec"], types),
            "status": STATUS,
        },
        "x-kubernetes-validations": [
            {
                "rule": f"size(self.metadata.name) <= {name['maxLength']}",
                "message": f"the name must hold at most {name['maxLength']} characters, as those "
                "of its pods are longer; choose a shorter one",
            },
            _matching("self.metadata.name", name["pattern"], "the name must be "),
        ],
    }
    for rule in RULES:
        if rule.cel is not None:
            place = _place(root, rule.at)
            place.setdefault("x-kubernetes-validations", []).append(_validation(rule, rule.cel))
    return root


def _structural(part: Schema, types: dict[str, Schema]) -> Schema:
    """A part of pydantic's schema as the API server takes it."""
    given = {key: value for key, value in part.items() if key not in _NOISE}
    if reference := given.pop("$ref", None):
        given = {**types[reference.rpartition("/")[2]], **given}
        return _structural(given, types)
    options = given.get("anyOf", ())
    if {"type": "null"} in options:  # an absent field is how a manifest says null
        (option,) = (one for one in options if one != {"type": "null"})
        del given["anyOf"]
        return _structural({**option, **given}, types)
    if word := given.pop("const", None):
        given["enum"] = [word]
    rules = list(given.pop("x-kubernetes-validations", ()))
    if keyed := given.pop("patternProperties", None):
        ((pattern, values),) = keyed.items()
        given["additionalProperties"] = _structural(values, types)
        rules.append(_matching("self.all(key, key", pattern, "each key must be ", end=")"))
    if "properties" in given:
        given["properties"] = {
            name: _structural(inner, types) for name, inner in given["properties"].items()
        }
    if "items" in given:
        given["items"] = _structural(given["items"], types)
    pattern = given.pop("pattern", None)
    if pattern and "x-kubernetes-int-or-string" not in given:
        rules.append(_matching("self", pattern, "must be "))
    if rules:
        given["x-kubernetes-validations"] = rules
    return _with_default(given)


def _with_default(given: Schema) -> Schema:
    """A group's default is written out, as the API server checks it; what is empty needs none."""
    default = _filled(given.pop("default", None))
    return given if default in (None, {}, []) else {**given, "default": default}


def _filled(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    inner = {key: _filled(field) for key, field in value.items()}
    return {key: field for key, field in inner.items() if field not in (None, {}, [])}


def _matching(value: str, pattern: str, wanted: str, end: str = "") -> Schema:
    """A pattern as a rule that says in words what it means."""
    message = f"{wanted}{PATTERN_WORDS[pattern]}"
    return {"rule": f"{value}.matches(r'{pattern}'){end}", "message": message}


def _validation(rule: Rule, cel: str) -> Schema:
    made = {"rule": cel, "message": rule.message}
    return {**made, "fieldPath": f".{rule.field}"} if rule.field else made


def _place(root: Schema, path: str) -> Schema:
    """The schema of the value at a path; [] leads to the entries of a list, "" to all of it."""
    place = root
    for part in path.split(".") if path else ():
        place = place["properties"][part.removesuffix("[]")]
        if part.endswith("[]"):
            place = place["items"]
    return place


def text() -> str:
    """The file. Raises ValueError for what Helm would take for a template."""
    written = yaml.safe_dump(crd(), sort_keys=False, width=120, allow_unicode=True)
    if "{{" in written:
        raise ValueError("a description or rule holds {{, which Helm reads as a template")
    return _HEADER + written


def main(arguments: list[str]) -> int:
    """Exit code."""
    is_current = TEMPLATE.exists() and TEMPLATE.read_text() == text()
    if arguments == ["--check"]:
        if not is_current:
            print(f"error: {TEMPLATE} is out of date; run make gen", file=sys.stderr)
        return 0 if is_current else 1
    TEMPLATE.write_text(text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
