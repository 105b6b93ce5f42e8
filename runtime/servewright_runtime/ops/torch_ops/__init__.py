"""The ops of the kernels registered with torch.library, so that torch.compile takes them whole.

    from servewright_runtime.ops import torch_ops
    torch_ops.register()
    y = torch.ops.servewright.mlp(x, weights, biases, activations)

torch reads no header of ours and we none of its: tensors cross as numpy arrays on the CPU, by
DLPack on CUDA. Registering is a call because it changes torch. The ops are for inference.
"""

from servewright_runtime.ops.torch_ops.attention import PagedAttention, PrefillAttention
from servewright_runtime.ops.torch_ops.call import Call
from servewright_runtime.ops.torch_ops.networks import Mlp
from servewright_runtime.ops.torch_ops.pages import keys_and_values, kv_pool
from servewright_runtime.ops.torch_ops.registering import OPS, register
from servewright_runtime.ops.torch_ops.sampling import Sample
from servewright_runtime.ops.torch_ops.weights import Dequantise, Project, pack

__all__ = [
    "OPS",
    "Call",
    "Dequantise",
    "Mlp",
    "PagedAttention",
    "PrefillAttention",
    "Project",
    "Sample",
    "keys_and_values",
    "kv_pool",
    "pack",
    "register",
]
