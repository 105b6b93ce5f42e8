"""What a ModelService may say about its pods: the fields people use, under Kubernetes' own names.

Not the whole PodSpec: it alone makes a CRD of megabytes, and most of it would break what a replica
promises. Only a cluster obeys these fields.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.config import JsonDict

from servewright_api.values import (
    AnnotationValue,
    Cpu,
    DataKey,
    EnvName,
    ImageName,
    LabelKey,
    LabelValue,
    Memory,
    SubdomainName,
    Type,
)

MAP_OF_NAMES: JsonDict = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
ATOMIC_LIST: JsonDict = {"x-kubernetes-list-type": "atomic"}


class Requests(Type):
    """What the scheduler sets aside for a pod."""

    cpu: Cpu = Field(default="250m", description="CPUs set aside for a pod, such as 2 or 500m.")
    memory: Memory = Field(default="1Gi", description="Memory set aside for a pod.")


class ResourceLimits(Type):
    """What a pod may use at most."""

    cpu: Cpu | None = Field(
        default=None,
        description="CPUs that a pod may use, such as 4. Unless given: all that its node has free.",
    )
    memory: Memory = Field(
        default="2Gi",
        description=(
            "Memory that a pod may use; with more it is killed. It holds about 700Mi and, unless "
            "an accelerator does, the model and its KV cache."
        ),
    )


class Resources(Type):
    """CPU and memory of each pod."""

    requests: Requests = Field(
        default=Requests(), description="What the scheduler sets aside for a pod."
    )
    limits: ResourceLimits = Field(
        default=ResourceLimits(), description="What a pod may use at most."
    )


class SecretRef(Type):
    """A Secret in the ModelService's namespace."""

    name: SubdomainName = Field(description="Name of the Secret.")


class KeyRef(Type):
    """One key of a Secret or ConfigMap in the ModelService's namespace."""

    name: SubdomainName = Field(description="Name of the Secret or ConfigMap.")
    key: DataKey = Field(description="Key in it.")


class EnvSource(Type):
    """Where a variable's value comes from: one of the two."""

    secret_key_ref: KeyRef | None = Field(default=None, description="A key of a Secret.")
    config_map_key_ref: KeyRef | None = Field(default=None, description="A key of a ConfigMap.")


class EnvVar(Type):
    """An environment variable."""

    name: EnvName = Field(
        description=(
            "Name of the variable. SERVEWRIGHT_..., RAY_... and HOME are set by the operator."
        )
    )
    value: str | None = Field(default=None, max_length=4096, description="Its value, plain text.")
    value_from: EnvSource | None = Field(
        default=None, description="Where its value comes from, instead of `value`."
    )


class Toleration(Type):
    """A taint of nodes that the pods tolerate."""

    key: LabelKey | None = Field(
        default=None, description="Key of the taint; with Exists, all keys unless given."
    )
    operator: Literal["Equal", "Exists"] = Field(
        default="Equal", description="Equal: the taint has this value; Exists: any."
    )
    value: LabelValue | None = Field(default=None, description="Value of the taint.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Effect of the taint, all unless given."
    )
    toleration_seconds: int | None = Field(
        default=None,
        ge=0,
        le=31_536_000,
        description="Seconds that a NoExecute taint is tolerated for, for ever unless given.",
    )


class TopologySpread(Type):
    """How evenly the pods are spread over zones, nodes or the like."""

    topology_key: LabelKey = Field(
        description="Label of nodes whose values are the zones, such as kubernetes.io/hostname."
    )
    max_skew: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="By how many pods the fullest and the emptiest zone may differ.",
    )
    when_unsatisfiable: Literal["ScheduleAnyway", "DoNotSchedule"] = Field(
        default="ScheduleAnyway",
        description="DoNotSchedule: a pod that cannot be spread so waits.",
    )


class Pod(Type):
    """What else is wanted of the pods."""

    service_account_name: SubdomainName | None = Field(
        default=None,
        description="ServiceAccount of the pods, default unless given; no token is mounted.",
    )
    image_pull_secrets: list[SecretRef] = Field(
        default=[],
        max_length=16,
        description="Secrets to pull the image with, besides the installation's.",
        json_schema_extra=MAP_OF_NAMES,
    )
    node_selector: dict[LabelKey, LabelValue] = Field(
        default={}, max_length=32, description="Labels that a node must have."
    )
    tolerations: list[Toleration] = Field(
        default=[],
        max_length=32,
        description="Taints of nodes that the pods tolerate.",
        json_schema_extra=ATOMIC_LIST,
    )
    topology_spread: list[TopologySpread] = Field(
        default=[],
        max_length=8,
        description="How evenly the pods are spread over zones, nodes or the like.",
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["topologyKey", "whenUnsatisfiable"],
        },
    )
    priority_class_name: SubdomainName | None = Field(
        default=None, description="PriorityClass of the pods."
    )
    labels: dict[LabelKey, LabelValue] = Field(
        default={}, max_length=32, description="Labels of the pods, for your own use."
    )
    annotations: dict[LabelKey, AnnotationValue] = Field(
        default={}, max_length=32, description="Annotations of the pods, for your own use."
    )
    env: list[EnvVar] = Field(
        default=[],
        max_length=64,
        description="Environment of the replica and of what fetches the model: proxies and so on.",
        json_schema_extra=MAP_OF_NAMES,
    )
    runtime_class_name: SubdomainName | None = Field(
        default=None, description="RuntimeClass of the pods."
    )
    image: ImageName | None = Field(
        default=None,
        description="Image of the runtime, instead of the installation's.",
    )
