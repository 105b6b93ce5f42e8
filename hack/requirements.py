"""What an image installs beside our own code: requirement lines of pyproject.toml, one a line.

    python hack/requirements.py runtime,reference

So an image's layer of dependencies depends on pyproject.toml and the lock, and not on our code.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """The requirements of the distribution itself, then of its `extras`. Raises KeyError."""
    project = tomllib.loads(pyproject.read_text())["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent
    print("\n".join(requirements(root / "pyproject.toml", sys.argv[1].split(","))))
