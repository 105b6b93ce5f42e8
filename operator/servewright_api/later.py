"""What is planned and not here yet, so that a manifest for a later version is told so by name."""

from __future__ import annotations

LATER_FIELDS = frozenset(
    {
        "spec.accelerator",
        "spec.adapters",
        "spec.api",
        "spec.backend",
        "spec.cache",
        "spec.explain",
        "spec.parallelism",
        "spec.pod",
        "spec.replicas",
        "spec.resources",
        "spec.rollout",
        "spec.scaling",
        "spec.suspend",
        "spec.traffic",
        "spec.tuningRef",
        "spec.engine.quantization",
        "spec.model.credentialsSecret",
        "spec.model.revision",
        "spec.probe.inputs",
        "spec.probe.intervalSeconds",
    }
)

LATER_SCHEMES = frozenset({"hf", "s3", "pvc"})

LATER_FORMATS = ("safetensors", "onnx", "skops", "keras", "torchscript", "xgboost", "lightgbm")
