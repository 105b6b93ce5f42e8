"""What `servewright info` shows: this machine, its kernels, the versions of what is installed."""

from __future__ import annotations

import platform
from importlib import metadata

from servewright_api import __version__
from servewright_runtime.cuda import availability
from servewright_runtime.errors import ServewrightError
from servewright_runtime.hardware import Hardware, detect

# Asked by metadata, not by import: ray and torch take seconds to import and start threads.
_PACKAGES = ("ray", "torch", "tokenizers", "gguf", "starlette", "uvicorn", "pydantic")


def inventory() -> list[tuple[str, str]]:
    """Pairs of a word and what there is to say about it."""
    hardware = detect()
    return [
        ("servewright", __version__),
        ("python", platform.python_version()),
        ("system", f"{hardware.system} {hardware.machine}"),
        ("cpu", f"{hardware.cpu_name}, {hardware.cpus} available"),
        ("memory", f"{hardware.memory_bytes / 2**30:.1f} GiB"),
        ("kernels", kernels(hardware)),
        ("gpu", gpu()),
        *((name, installed(name)) for name in _PACKAGES),
    ]


def kernels(hardware: Hardware) -> str:
    """The native kernels that this CPU runs, best first, and which one is taken; else why none."""
    if hardware.system != "Linux":
        return f"none: serving needs Linux, and this is {hardware.system}"
    try:
        from servewright_runtime import native
    except ModuleNotFoundError as error:
        return f"none: {error.name} is not installed (pip install 'servewright[runtime]')"
    why = native.unavailable()
    if why is not None:
        return f"none: {why} (engine.kernel Reference serves instead, with torch)"
    try:
        chosen = native.chosen_variant()
    except ServewrightError as error:
        return f"none: {error.message}"
    others = [variant for variant in native.variants() if variant != chosen]
    return ", ".join([f"{chosen} (chosen)", *others])


def gpu() -> str:
    """Whether models with spec.accelerator can run here; if not, why."""
    why = availability.unavailable()
    return "nvidia: the CUDA kernels run on device 0" if why is None else f"none: {why}"


def installed(distribution: str) -> str:
    """Its version, or that it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
