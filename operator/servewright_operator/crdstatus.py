"""The schema of `status`: what the operator writes and people read.

Texts and seconds are not bounded here but where they are made: a message that is too long, or a
clock that ran backwards, must not keep the rest of a status from being written.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def _text(description: str) -> Schema:
    return {"type": "string", "description": description}


def _time(description: str) -> Schema:
    return {"type": "string", "format": "date-time", "description": description}


def _count(description: str) -> Schema:
    return {"type": "integer", "format": "int32", "minimum": 0, "description": description}


def _seconds(description: str) -> Schema:
    return {"type": "number", "description": f"Seconds {description}."}


def _group(description: str, properties: Schema) -> Schema:
    return {"type": "object", "description": description, "properties": properties}


# metav1.Condition, as the Kubernetes API conventions have it.
_CONDITION: Schema = {
    "type": "object",
    "required": ["type", "status", "lastTransitionTime", "reason", "message"],
    "properties": {
        "type": {"type": "string", "maxLength": 316, "description": "Name of the condition."},
        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
        "observedGeneration": {
            "type": "integer",
            "format": "int64",
            "minimum": 0,
            "description": "Generation of the spec that the condition is about.",
        },
        "lastTransitionTime": _time("When the status changed last."),
        "reason": {
            "type": "string",
            "minLength": 1,
            "maxLength": 1024,
            "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            "description": "One CamelCase word for programs.",
        },
        "message": {"type": "string", "maxLength": 32768, "description": "The same for people."},
    },
}

STATUS: Schema = _group(
    "What the operator saw last.",
    {
        "observedGeneration": {
            "type": "integer",
            "format": "int64",
            "description": "Generation of the spec that this status is about.",
        },
        "conditions": {
            "type": "array",
            "description": "Admitted, Scheduled, ModelReady, Available, Progressing, Degraded, "
            "Ready.",
            "items": _CONDITION,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
        "replicas": _count("Pods that exist."),
        "readyReplicas": _count("Pods that answered their own probe."),
        "updatedReplicas": _count("Pods of the revision that the Deployment is to run."),
        "selector": _text("Selects the pods; for autoscalers."),
        "revision": _text("Name of the revision that spec asks for."),
        "lastGoodRevision": _text("Name of the last revision that was rolled out completely."),
        "failedRevision": _text("Name of the revision that was rolled back."),
        "model": _group(
            "The model: its name, and the rest as the runtime loaded it.",
            {
                "name": _text("Name that clients write as `model`."),
                "digest": _text("sha256:... of the model file."),
                "format": _text("Format of the model file."),
                "bytes": {
                    "type": "integer",
                    "format": "int64",
                    "description": "Size of the model file.",
                },
            },
        ),
        "endpoints": _group(
            "Where clients call.", {"openai": _text("Base URL in the cluster, /v1 included.")}
        ),
        "lastProbe": _group(
            "The operator's last call through the Service.",
            {
                "time": _time("When it ended."),
                "revision": _text("Name of the revision that answered, or was asked for."),
                "latencySeconds": _seconds("that the answer took"),
                "result": {"type": "string", "enum": ["Succeeded", "Failed", "Unknown"]},
                "reason": _text("One CamelCase word for programs."),
                "message": _text("The same for people."),
            },
        ),
        "coldStart": _group(
            "Where the time of the last start went.",
            {
                "schedule": _seconds("until the pod had a node"),
                "pull": _seconds("until the image was there"),
                "fetch": _seconds("until the model was there"),
                "start": _seconds("until the replica's processes ran"),
                "load": _seconds("until the weights were loaded"),
                "warm": _seconds("until the pod answered its own probe"),
            },
        ),
        "lastFailure": _group(
            "What the pod that failed last said of itself.",
            {
                "time": _time("When it was seen."),
                "pod": _text("Name of the pod."),
                "revision": _text("Name of its revision."),
                "reason": _text("One CamelCase word for programs."),
                "message": _text("The same for people."),
                "exitCode": {"type": "integer", "format": "int32", "description": "Exit code."},
                "logTail": _text("The last lines of its log."),
            },
        ),
    },
)
