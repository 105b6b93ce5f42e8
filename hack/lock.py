"""Resolve what `.[dev]` installs to exact versions and write requirements.lock.

The lock is a constraints file: pip reads it with -c, so it names no index, no hash and no local
version (a CPU-only build of torch satisfies torch==2.13.0), and lists nothing that a platform
merely may add, such as the CUDA packages of torch's default build.
Run it by `make lock`; review the diff; run the tests.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Chosen by hand; everything else is the newest that pyproject.toml allows.
PINS = ("torch==2.13.0",)
# What the build needs, and pip itself, which reads the lock.
TOOLS = ("pip", "setuptools", "wheel")
_PLATFORM_ONLY = re.compile(r"(nvidia|cuda|triton)([-_].*)?|.*-cu[0-9]+")

HEADER = """\
# Exact versions of what the tests run with. Made by `make lock`; used as
# `pip install -c requirements.lock`. pyproject.toml holds the ranges that the package allows.
"""


def main() -> int:
    """Write the lock."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"),
                *("--ignore-installed", "--report", str(report)),
                *(*PINS, *TOOLS, f"{ROOT}[dev]"),
            ],
            check=True,
        )
        installs = json.loads(report.read_text())["install"]
    (ROOT / "requirements.lock").write_text(HEADER + "\n".join(locked(installs)) + "\n")
    return 0


def locked(installs: list[dict[str, dict[str, str]]]) -> list[str]:
    """Lines of the lock, from the `install` list of pip's report."""
    versions = {}
    for install in installs:
        name = re.sub(r"[-_.]+", "-", install["metadata"]["name"]).lower()
        if name != "servewright" and not _PLATFORM_ONLY.fullmatch(name):
            versions[name] = install["metadata"]["version"].partition("+")[0]
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


if __name__ == "__main__":
    sys.exit(main())
