"""What the operator is told by its environment, read once in `__main__`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PodDefaults:
    """What a new revision's pods take from the installation. Old revisions keep theirs."""

    image: str  # of the runtime
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()  # names of Secrets in the ModelService's namespace


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole configuration. `namespaces` empty: the whole cluster."""

    pods: PodDefaults
    identity: str  # this process, in the Lease
    lease_namespace: str
    lease_name: str = "servewright-operator"
    namespaces: tuple[str, ...] = ()
    port: int = 8080  # /livez /readyz /metrics
    host: str = "0.0.0.0"  # noqa: S104 - a pod's own address; the kubelet and Prometheus call it
    workers: int = 16
    resync_s: float = 300.0
    lease_duration_s: float = 15.0
    lease_renew_s: float = 2.0
