"""The ModelService API: types, validation, version. Knows no client and no runtime."""

from servewright_api.modelservice import API_VERSION, GROUP, KIND, ModelService
from servewright_api.revision import revision
from servewright_api.version import __version__

__all__ = ["API_VERSION", "GROUP", "KIND", "ModelService", "__version__", "revision"]
