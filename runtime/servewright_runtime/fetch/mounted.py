"""Files of a PersistentVolumeClaim, as a pod has it mounted."""

from __future__ import annotations

import os
from pathlib import Path

from servewright_runtime.errors import ConfigError
from servewright_runtime.fetch.uri import PvcSource


def mounted_file(source: PvcSource, mount: Path | None) -> Path:
    """Where the file of `source` lies under `mount`, links followed; None: no claim is mounted.

    Raises ConfigError where it leads out of the mount. That there is such a file is not said.
    """
    if mount is None:
        raise ConfigError(
            f"{source.shown} names a volume of a cluster, and this is no pod; name the file on "
            "this machine by file:///PATH."
        )
    path = Path(os.path.realpath(mount / source.path))
    if not path.is_relative_to(os.path.realpath(mount)):
        raise ConfigError(
            f"{source.shown} is a link that leads out of the claim {source.claim}; name the file "
            "itself or put it into the claim."
        )
    return path
