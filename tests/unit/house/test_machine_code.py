"""What the compiler made of the CPU kernels, read off the built extension.

A machine runs only some variants; all of them are compiled, so all can be disassembled anywhere.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from servewright_runtime import _native

# The order in which setup.py links them.
VARIANTS = ("base", "avx2", "avx2x16", "avx512", "amx")
# Of a tile's instructions, those that may move vectors between registers and stack: what its loop
# keeps there costs a load and a store each round. `base` and `avx2x16` have too few registers.
SPILLS = {"avx2": 0.12, "avx512": 0.05, "amx": 0.05}
# One multiplies signed bytes in 16 bits, one has VNNI.
DOTS = {"base": "pmaddwd", "avx2": "vpmaddubsw", "avx2x16": "vpmaddubsw"}
DOTS |= {"avx512": "vpdpbusd", "amx": "vpdpbusd"}
WIDTH = {"base": "xmm", "avx2": "ymm", "avx2x16": "ymm", "avx512": "zmm", "amx": "zmm"}

STARTS = re.compile(r"([0-9a-f]+) <(.*)>:$")
ON_STACK = re.compile(r"\(%r[sb]p")


@dataclass(frozen=True)
class Function:
    variant: str
    name: str
    code: Sequence[str]

    @property
    def is_tile(self) -> bool:
        return "_tile<" in self.name

    @property
    def opcodes(self) -> Counter[str]:
        return Counter(line.split()[0] for line in self.code)

    def uses(self, register: str) -> bool:
        return any(f"%{register}" in line for line in self.code)


def run(*command: str) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.fixture(scope="module")
def functions() -> list[Function]:
    """Functions of cpu/variant.cpp. Symbols follow their source, once for each variant."""
    variants: dict[int, str] = {}
    names, variant = iter(VARIANTS), None
    for line in run("readelf", "-sW", _native.__file__):
        match line.split():
            case [_, _, _, "FILE", _, _, _, source]:
                variant = next(names) if source == "variant.cpp" else None
            case [_, address, _, "FUNC", *_] if variant:
                variants[int(address, 16)] = variant
    assert next(names, None) is None

    found: list[Function] = []
    code: list[str] = []
    for line in run("objdump", "-d", "-C", "--no-show-raw-insn", _native.__file__):
        if start := STARTS.match(line):
            code = []
            if variant := variants.get(int(start[1], 16)):
                found.append(Function(variant, start[2], code))
        elif "\t" in line:
            code.append(line.split("\t", 1)[1])
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_keeps_to_its_registers(variant: str, functions: list[Function]) -> None:
    of_variant = [f for f in functions if f.variant == variant]
    widths = ["xmm", "ymm", "zmm"]
    for wider in widths[widths.index(WIDTH[variant]) + 1 :]:
        assert not [f.name for f in of_variant if f.uses(wider)]
    assert [f.name for f in of_variant if f.is_tile and f.uses(WIDTH[variant])]


@pytest.mark.parametrize("variant", VARIANTS)
def test_quantised_tiles_multiply_integers(variant: str, functions: list[Function]) -> None:
    tiles = [f for f in functions if f.variant == variant and "quantised_tile<" in f.name]
    assert len(tiles) >= 3 * 4  # types times tokens
    for tile in tiles:
        assert tile.opcodes[DOTS[variant]] >= 8, tile.name


def test_large_tiles_multiply_by_tile_registers(functions: list[Function]) -> None:
    tiles = [f for f in functions if f.variant == "amx" and "large_tile<" in f.name]
    assert len(tiles) == 3 * 8  # types times tokens
    for tile in tiles:
        assert tile.opcodes["tdpbssd"] == 1, tile.name


@pytest.mark.parametrize("variant", SPILLS)
def test_tiles_keep_their_sums_in_registers(variant: str, functions: list[Function]) -> None:
    tiles = [f for f in functions if f.variant == variant and f.is_tile]
    assert tiles
    for tile in tiles:
        moved = [
            line for line in tile.code if re.search(r"%[yz]mm", line) and ON_STACK.search(line)
        ]
        allowed = SPILLS[variant] * len(tile.code) if "quantised" in tile.name else 0
        assert len(moved) <= allowed, (tile.name, moved)
