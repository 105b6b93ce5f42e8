"""What the operator is told by its environment, which `__main__` reads once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_DEFAULT_NAMESPACE = "default"


LOG_LEVELS = ("debug", "info", "warning", "error")


class SettingsError(Exception):
    """The environment does not say what is needed. The message is a sentence with the cure."""


@dataclass(frozen=True, slots=True)
class PodDefaults:
    """What a new revision's pods take from the installation. Old revisions keep theirs."""

    image: str  # of the runtime
    cuda_image: str  # the same, where the ModelService has an accelerator
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
    host: str = ""  # any address: the kubelet and Prometheus call it
    workers: int = 16
    resync_s: float = 300.0
    lease_duration_s: float = 15.0
    lease_renew_s: float = 2.0
    log_level: str = "info"

    @classmethod
    def of(cls, environ: Mapping[str, str], host: str) -> Settings:
        """From environment variables; `host` names this process where POD_NAME does not.

        Raises SettingsError.
        """
        image = _image(environ, "SERVEWRIGHT_RUNTIME_IMAGE", "replicas run")
        cuda_image = _image(environ, "SERVEWRIGHT_CUDA_IMAGE", "replicas with an accelerator run")
        port = environ.get("SERVEWRIGHT_PORT", "8080")
        if not port.isdecimal() or not 0 <= int(port) < 65536:
            raise SettingsError(
                f"The environment variable SERVEWRIGHT_PORT is {port!r}: give it a port's number."
            )
        level = environ.get("SERVEWRIGHT_LOG_LEVEL", "info").lower()
        if level not in LOG_LEVELS:
            raise SettingsError(
                f"The environment variable SERVEWRIGHT_LOG_LEVEL is {level!r}: "
                f"give it one of {', '.join(LOG_LEVELS)}."
            )
        return cls(
            pods=PodDefaults(
                image=image,
                cuda_image=cuda_image,
                image_pull_policy=environ.get("SERVEWRIGHT_IMAGE_PULL_POLICY") or "IfNotPresent",
                image_pull_secrets=_words(environ.get("SERVEWRIGHT_IMAGE_PULL_SECRETS", "")),
            ),
            identity=environ.get("POD_NAME") or host,
            lease_namespace=environ.get("POD_NAMESPACE") or _DEFAULT_NAMESPACE,
            namespaces=_words(environ.get("SERVEWRIGHT_NAMESPACES", "")),
            port=int(port),
            log_level=level,
        )


def _image(environ: Mapping[str, str], variable: str, who: str) -> str:
    image = environ.get(variable, "")
    if not image:
        raise SettingsError(
            f"The environment variable {variable} is not set: give it the image that {who}."
        )
    return image


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
