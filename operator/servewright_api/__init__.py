"""The ModelService API: types, validation, version. Knows no client and no runtime."""

from servewright_api.manifest import (
    ManifestError,
    dump_manifest,
    load_manifests,
    parse_manifest,
    parse_manifests,
    service_from_cluster,
)
from servewright_api.modelservice import API_VERSION, GROUP, KIND, ModelService
from servewright_api.overrides import Override, parse_override
from servewright_api.quantity import parse_quantity
from servewright_api.revision import RESTARTED_AT_ANNOTATION, revision
from servewright_api.version import __version__

__all__ = [
    "API_VERSION",
    "GROUP",
    "KIND",
    "RESTARTED_AT_ANNOTATION",
    "ManifestError",
    "ModelService",
    "Override",
    "__version__",
    "dump_manifest",
    "load_manifests",
    "parse_manifest",
    "parse_manifests",
    "parse_override",
    "parse_quantity",
    "revision",
    "service_from_cluster",
]
