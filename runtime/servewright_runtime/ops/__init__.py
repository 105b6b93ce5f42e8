"""The kernels as ops of their own: for numpy (`Mlp`) and for torch (`torch_ops.register()`).

Nothing here knows models, engine or manifests; torch is imported by `torch_ops.register()` alone.
"""

from servewright_runtime.ops.mlp import ACTIVATIONS, MAX_WIDTH, WEIGHT_TYPES, Mlp

__all__ = ["ACTIVATIONS", "MAX_WIDTH", "WEIGHT_TYPES", "Mlp"]
