"""Runs a kernel's PTX on numpy, and counts: the second witness of the CUDA kernels.

    program = Program(text)                    # of `nvcc -ptx -lineinfo`
    memory = Memory()
    x = memory.place("x", values)
    y = memory.place_poisoned("y", (8,), np.float32)
    result = launch(program.kernel("scale"), memory, (1, 1, 1), (32, 1, 1), pack("<QQ", x, y))
    memory.read("y"), memory.arrays["x"].loads, result.shared_loads, result.races

It sees what the compiler made of a kernel, which the emulator does not: coalescing, vector widths,
bank conflicts, bytes, instructions. It does not see ptxas' work, races between blocks, or time.
"""

from hack.ptx.faults import Fault, Refused
from hack.ptx.launch import Result, launch
from hack.ptx.memory import Memory
from hack.ptx.program import Kernel, Program

__all__ = ["Fault", "Kernel", "Memory", "Program", "Refused", "Result", "launch"]
