"""What is planned and not here yet, so that a manifest for a later version is told so by name."""

from __future__ import annotations

LATER_FIELDS = frozenset(
    {
        "spec.adapters",
        "spec.api",
        "spec.backend",
        "spec.cache",
        "spec.explain",
        "spec.parallelism",
        "spec.scaling",
        "spec.traffic",
        "spec.tuningRef",
        "spec.engine.quantization",
        "spec.model.revision",
        "spec.probe.inputs",
    }
)

LATER_SCHEMES = ("hf", "s3")

LATER_FORMATS = ("safetensors", "onnx", "skops", "keras", "torchscript", "xgboost", "lightgbm")
