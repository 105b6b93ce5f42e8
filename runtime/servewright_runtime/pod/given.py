"""What the operator gives a pod: its manifest and revision in variables, files in mounts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from servewright_api import ManifestError, ModelService, parse_manifest
from servewright_runtime.errors import ConfigError

MANIFEST_VARIABLE = "SERVEWRIGHT_MANIFEST"
REVISION_VARIABLE = "SERVEWRIGHT_REVISION"


@dataclass(frozen=True, slots=True)
class Mounts:
    """Folders of a pod; each is there only where it is needed."""

    root: Path

    @property
    def model(self) -> Path:
        """The model: an empty folder that lives as long as the pod, or a claim's."""
        return self.root / "model"

    @property
    def keys(self) -> Path:
        """API keys, a file each."""
        return self.root / "keys"

    @property
    def credentials(self) -> Path:
        """The Secret for the model's source, in the container that fetches alone."""
        return self.root / "credentials"


@dataclass(frozen=True, slots=True)
class Given:
    """What a pod is to serve.

    revision: as the operator named it. Computed here it could differ: the image may be of another
    version than the operator.
    """

    service: ModelService
    revision: str

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Given:
        """Raises ConfigError, which a new image or a new operator may mend, but no restart."""
        text, revision = environ.get(MANIFEST_VARIABLE), environ.get(REVISION_VARIABLE)
        if not text or not revision:
            raise ConfigError(
                f"{MANIFEST_VARIABLE} and {REVISION_VARIABLE} are not both set; they are the "
                "operator's to set, and outside a pod `servewright run FILE` takes a manifest."
            )
        try:
            documents = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{MANIFEST_VARIABLE} is no JSON: {error}.") from None
        if not isinstance(documents, list) or len(documents) != 1:
            raise ConfigError(f"{MANIFEST_VARIABLE} is no list of one ModelService.")
        try:
            return cls(parse_manifest(documents[0], in_cluster=True), revision)
        except ManifestError as error:
            raise ConfigError(
                f"{MANIFEST_VARIABLE} holds what this image does not take, of another version "
                f"maybe: {' '.join(error.problems)}"
            ) from None
