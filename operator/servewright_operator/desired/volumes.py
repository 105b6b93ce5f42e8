"""The volumes of a replica's pod, all that it can read and write, and who mounts which.

Credentials for the model's source are mounted where it is fetched and nowhere else.
"""

from __future__ import annotations

from servewright_api.modelservice import ModelService
from servewright_operator import names
from servewright_operator.desired import secrets
from servewright_operator.objects import Object

_PVC = "pvc://"
# Where they are mounted.
TMP, _SHM, _MODEL = "/tmp", "/dev/shm", "/model"  # noqa: S108 - a pod's own
_KEYS, _CREDENTIALS = "/keys", "/credentials"
_READ_BY_ALL = 0o444  # whatever user id the pod gets


def build(service: ModelService) -> list[Object]:
    """What the pod has."""
    spec, name = service.spec, service.metadata.name
    volumes: list[Object] = [
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "128Mi"}},
    ]
    if spec.model.source.startswith(_PVC):
        claim = spec.model.source.removeprefix(_PVC).partition("/")[0]
        volumes.append(
            {"name": "model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        )
    else:
        volumes.append({"name": "model", "emptyDir": {}})
    if spec.access.mode == "ApiKey":
        users = (
            {"secret": {"name": spec.access.secret_ref.name}}
            if spec.access.secret_ref
            else secrets.mount(names.api_keys_secret(name), names.API_KEY)
        )
        # The operator's key comes last: under its name it wins.
        sources = [users, secrets.mount(names.probe_secret(name), names.PROBE_KEY)]
        volumes.append(
            {
                "name": secrets.KEYS_VOLUME,
                "projected": {"defaultMode": _READ_BY_ALL, "sources": sources},
            }
        )
    if fetches(service) and spec.model.credentials_secret:
        secret = {"secretName": spec.model.credentials_secret.name, "defaultMode": _READ_BY_ALL}
        volumes.append({"name": "credentials", "secret": secret})
    return volumes


def of_replica(service: ModelService) -> list[Object]:
    """What the container that serves mounts."""
    mounts: list[Object] = [
        {"name": "tmp", "mountPath": TMP},
        {"name": "shm", "mountPath": _SHM},
        {"name": "model", "mountPath": _MODEL, "readOnly": True},
    ]
    if service.spec.access.mode == "ApiKey":
        mounts.append({"name": secrets.KEYS_VOLUME, "mountPath": _KEYS, "readOnly": True})
    return mounts


def of_fetch(service: ModelService) -> list[Object]:
    """What the container that fetches mounts."""
    model = service.spec.model
    mounts: list[Object] = [
        {"name": "tmp", "mountPath": TMP},
        {"name": "model", "mountPath": _MODEL, "readOnly": model.source.startswith(_PVC)},
    ]
    if model.credentials_secret:
        mounts.append({"name": "credentials", "mountPath": _CREDENTIALS, "readOnly": True})
    return mounts


def fetches(service: ModelService) -> bool:
    """Whether there is something to bring or to verify before the replica starts."""
    model = service.spec.model
    return not model.source.startswith(_PVC) or model.digest is not None
