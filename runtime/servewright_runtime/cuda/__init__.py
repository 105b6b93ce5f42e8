"""Models on an NVIDIA GPU, by the kernels of csrc/cuda.

`availability` says whether they can run here and imports no torch. The other modules import torch,
which owns all device memory, and are imported where a runner is made.
"""
