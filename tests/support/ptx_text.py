"""PTX written by hand: small kernels for tests of the interpreter, which need no compiler."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from hack.ptx import Memory, Program, Result, launch
from numpy.typing import NDArray

Array = NDArray[Any]

_HEAD = """\
.version 9.0
.target sm_80
.address_size 64
{externs}
.visible .entry tested(
{parameters}
)
.maxntid {threads}, 1, 1
{{
\t.reg .pred \t%p<20>;
\t.reg .b16 \t%rs<40>;
\t.reg .b32 \t%r<60>;
\t.reg .f32 \t%f<40>;
\t.reg .b64 \t%rd<40>;
\t.reg .f64 \t%fd<40>;
{body}
\tret;
}}
"""


def program(body: str, parameters: int = 0, threads: int = 32, externs: str = "") -> Program:
    """A kernel `tested` of 64-bit parameters p0, p1, ..., which are in %rd0, %rd1, ... at once."""
    listed = ",\n".join(f"\t.param .u64 p{i}" for i in range(parameters))
    loads = "".join(f"\tld.param.u64 %rd{i}, [p{i}];\n" for i in range(parameters))
    return Program(
        _HEAD.format(parameters=listed, body=loads + body, threads=threads, externs=externs)
    )


def run(
    body: str,
    arrays: dict[str, Array],
    *,
    threads: int = 32,
    blocks: int = 1,
    externs: str = "",
    **options: Any,
) -> tuple[Memory, Result]:
    """Launch over arrays: the first one's address is in %rd0, and so on; %r0 is the thread."""
    memory = Memory()
    addresses = [memory.place(name, values) for name, values in arrays.items()]
    kernel = program("\tmov.u32 %r0, %tid.x;\n" + body, len(arrays), threads, externs)
    result = launch(
        kernel.kernel("tested"),
        memory,
        (blocks, 1, 1),
        (threads, 1, 1),
        struct.pack(f"<{len(addresses)}Q", *addresses),
        **options,
    )
    return memory, result


def compute(instruction: str, *inputs: Array, kind: str, lane_bytes: int = 0) -> Array:
    """One instruction over lanes: its operands are {a}, {b}, {c}, its result is {d}.

    `kind` is the numpy kind of the result; registers follow the inputs' kinds.
    """
    lines = ""
    names = {}
    for number, (letter, values) in enumerate(zip("abc", inputs, strict=False)):
        size = values.dtype.itemsize
        register = _register(values.dtype, 10 + number)
        lines += f"\tmad.wide.u32 %rd3{number}, %r0, {size}, %rd{number};\n"
        lines += f"\tld.global.{_type(values.dtype)} {register}, [%rd3{number}];\n"
        names[letter] = register
    result = np.dtype(kind)
    names["d"] = _register(result, 20)
    lines += "\t" + instruction.format(**names) + ";\n"
    lines += f"\tmad.wide.u32 %rd35, %r0, {result.itemsize}, %rd{len(inputs)};\n"
    lines += f"\tst.global.{_type(result)} [%rd35], {names['d']};\n"
    arrays = {f"in{i}": values for i, values in enumerate(inputs)}
    arrays["out"] = np.zeros(len(inputs[0]), result)
    threads = len(inputs[0])
    memory, _ = run(lines, arrays, threads=threads)
    return memory.read("out")


def _type(dtype: np.dtype[Any]) -> str:
    return f"f{dtype.itemsize * 8}" if dtype.kind == "f" else f"b{dtype.itemsize * 8}"


def _register(dtype: np.dtype[Any], number: int) -> str:
    prefix = {"f4": "%f", "f8": "%fd"}.get(f"{dtype.kind}{dtype.itemsize}")
    return f"{prefix or {1: '%rs', 2: '%rs', 4: '%r', 8: '%rd'}[dtype.itemsize]}{number}"
