"""Whether the CUDA kernels can run here: exactly what is missing, and no guess beyond it.

Nothing here imports torch or numpy: the supervisor asks too, before it starts anything.
"""

from __future__ import annotations

import ctypes
import importlib.util
import runpy
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from servewright_runtime.errors import ConfigError

# What the driver installs; the extension loads it by this name when it is asked to.
_DRIVER = "libcuda.so.1"
_why_not_loaded = ""

if TYPE_CHECKING:
    from servewright_runtime import _cuda
    from servewright_runtime.models.runner import LlamaConfig
else:
    try:
        from servewright_runtime import _cuda
    except ImportError as error:
        _cuda, _why_not_loaded = None, str(error).rstrip(".")


def unavailable(device: int = 0) -> str | None:
    """One sentence that says what the CUDA kernels lack on a device, or None if they can run."""
    if _cuda is None:
        return _loading_problem()
    return _cuda.device_problem(device) or _torch_problem()


def kernels() -> ModuleType:
    """The extension module. Raises ConfigError where `unavailable()` gives a reason."""
    why = unavailable()
    if why is not None:
        raise ConfigError(why)
    return _cuda


def unfit(config: LlamaConfig, types: Mapping[str, str]) -> str | None:
    """Why the kernels cannot run a model though they run here, one sentence, or None.

    types: the GGUF type of each tensor by its name.
    """
    return _cuda.unfit(config, types) or None


def _loading_problem() -> str:
    """Why there is no extension module, and whether that would be all."""
    if importlib.util.find_spec("servewright_runtime._cuda") is not None:
        return f"The CUDA kernels are built and cannot be loaded: {_why_not_loaded}."
    why = (
        "The CUDA kernels are not built in this installation; install it again with "
        "SERVEWRIGHT_CUDA=1 and nvcc 13 present, or in a pod use the image that has them "
        "(the chart's runtime.cudaImage)"
    )
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        why += f"; an NVIDIA driver ({_DRIVER}) is missing here too"
    return f"{why}."


def _torch_problem() -> str | None:
    """What there is not of torch, by its files: importing it takes a second and 200 MB."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return (
            "The CUDA kernels keep their memory in torch's tensors and torch is not installed; "
            "run `pip install 'servewright[reference]'`."
        )
    version = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    if version["cuda"] is None:
        return (
            f"The CUDA kernels keep their memory in torch's tensors and torch "
            f"{version['__version__']} is built without CUDA; install its build for CUDA."
        )
    return None
