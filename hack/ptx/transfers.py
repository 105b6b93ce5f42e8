"""Instructions that touch memory or other lanes, as calls of the machine `X`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hack.ptx.faults import Refused
from hack.ptx.operands import KINDS, address, vector
from hack.ptx.program import SIZES, Instruction

if TYPE_CHECKING:
    from hack.ptx.translation import Writer

_SPACES = {"global", "shared", "param", "const", "local"}
_ORDERS = {"relaxed", "acquire", "release", "acq_rel", "volatile", "weak"}
_SCOPES = {"cta", "gpu", "sys"}
_HINTS = {"nc", "L1::no_allocate", "L1::evict_last", "L1::evict_first", "L2::128B", "L2::256B"}
_CACHES = {"ca", "cg", "cs", "lu", "cv", "wb", "wt"}


def transfer(writer: Writer, instruction: Instruction) -> bool:
    """Write the instruction, or answer False when it is none of these."""
    handler = _HANDLERS.get(instruction.base)
    return handler is not None and handler(writer, instruction)


def _space(instruction: Instruction) -> tuple[str, int]:
    """Space ("" is generic) and members of a vector, of ld and st."""
    space, members = "", 1
    for part in instruction.modifiers[:-1]:
        if part.partition("::")[0] in _SPACES:
            space = part.partition("::")[0]
        elif part in ("v2", "v4"):
            members = int(part[1])
        elif part not in _ORDERS | _SCOPES | _HINTS | _CACHES:
            raise ValueError(part)
    if space in ("const", "local"):
        raise Refused(f"{'spilled: ' * (space == 'local')}{instruction}")
    return space, members


def _load(writer: Writer, instruction: Instruction) -> bool:
    space, members = _space(instruction)
    targets, source = instruction.operands
    base, offset = address(source)
    kind = KINDS[instruction.modifiers[-1]]
    if space == "param":
        start = writer.read(base, "i8")
        for at, target in enumerate(vector(targets)):
            place = offset + at * int(kind[1:])
            writer.write(target, kind, f"X.parameter({start} + {place}, {kind})")
        return True
    where = _address(writer, base, offset)
    if "nc" in instruction.modifiers:
        space = "read-only"
    writer.line(f"t = X.load({writer.at}, '{space}', {where}, {writer.mask}, {kind}, {members})")
    for at, target in enumerate(vector(targets)):
        writer.write(target, kind, f"t[{at}]")
    return True


def _store(writer: Writer, instruction: Instruction) -> bool:
    space, _ = _space(instruction)
    target, sources = instruction.operands
    kind = KINDS[instruction.modifiers[-1]]
    where = _address(writer, *address(target))
    values = ", ".join(writer.read(source, f"u{kind[1:]}") for source in vector(sources))
    writer.line(f"X.store({writer.at}, '{space}', {where}, {writer.mask}, ({values},))")
    return True


def _address(writer: Writer, base: str, offset: int) -> str:
    """An expression of signed 64-bit addresses; 32-bit ones, of shared memory, are widened."""
    if base.startswith("%"):
        wide = SIZES[writer.kernel.register_type(base)] == 8
        value = writer.read(base, "i8") if wide else f"{writer.read(base, 'u4')}.astype(i8)"
    else:
        value = writer.read(base, "i8")
    return f"({value} + {offset})" if offset else value


def _atomic(writer: Writer, instruction: Instruction) -> bool:
    *parts, part = instruction.modifiers
    space = ""
    operation = ""
    for modifier in parts:
        if modifier.partition("::")[0] in _SPACES:
            space = modifier.partition("::")[0]
        elif modifier not in _ORDERS | _SCOPES:
            operation = modifier
    if operation not in ("add", "min", "max", "and", "or", "xor", "exch", "cas"):
        return False
    operands = list(instruction.operands)
    target = operands.pop(0) if instruction.base == "atom" else "_"
    kind = KINDS[part]
    if part in ("bf16x2", "f16x2", "bf16", "f16"):
        return False
    where = _address(writer, *address(operands[0]))
    values = ", ".join(writer.read(operand, kind) for operand in operands[1:])
    writer.line(
        f"t = X.atomic({writer.at}, '{space}', {where}, {writer.mask}, '{operation}', {values})"
    )
    writer.write(target, kind, "t")
    return True


def _copy(writer: Writer, instruction: Instruction) -> bool:
    """cp.async of 4, 8 or 16 bytes a lane, with zero-fill; bulk copies are refused."""
    parts = instruction.modifiers
    if parts[:2] == ("async", "commit_group"):
        writer.line(f"X.copies.commit({writer.mask})")
        return writer.mask == "M"
    if parts[:2] == ("async", "wait_group") or parts[:2] == ("async", "wait_all"):
        newest = instruction.operands[0] if parts[1] == "wait_group" else "None"
        writer.line(f"X.wait({writer.at}, {writer.mask}, {newest})")
        return writer.mask == "M"
    if parts[0] != "async" or parts[1] not in ("cg", "ca") or "bulk" in parts:
        return False
    target, source, size, *rest = instruction.operands
    if len(rest) > 1:
        return False
    filled = f"({writer.read(rest[0], 'u4')} != 0)" if rest else "None"
    if rest:
        writer.line(f"X.whole({writer.at}, {writer.read(rest[0], 'u4')}, {size})")
    to, origin = _address(writer, *address(target)), _address(writer, *address(source))
    writer.line(f"X.copy({writer.at}, {to}, {origin}, {writer.mask}, {filled}, {int(size)})")
    return True


def _shuffle(writer: Writer, instruction: Instruction) -> bool:
    if instruction.modifiers[0] != "sync":
        return False
    mode = instruction.modifiers[1]
    target, *sources = instruction.operands
    values, lane, limits = (writer.read(source, "u4") for source in sources[:3])
    writer.line(
        f"t, s = X.shuffle({writer.at}, '{mode}', {values}, {lane}, {limits}, {writer.mask})"
    )
    first, *second = target.split("|")
    writer.write(first, "u4", "t")
    for register in second:
        writer.write(register, "b1", "s")
    return True


def _vote(writer: Writer, instruction: Instruction) -> bool:
    if instruction.modifiers[0] != "sync":
        return False
    target, source = instruction.operands[:2]
    negated = "~" if source.startswith("!") else ""
    guard = f"{negated}{writer.read(source.lstrip('!'), 'b1')}"
    mode = instruction.modifiers[1]
    value = f"X.vote('{mode}', {guard}, {writer.mask})"
    writer.write(target, "u4" if mode == "ballot" else "b1", value)
    return mode in ("any", "all", "uni", "ballot")


def _active(writer: Writer, instruction: Instruction) -> bool:
    writer.write(instruction.operands[0], "u4", f"X.vote('ballot', np.True_, {writer.mask})")
    return True


def _reduce(writer: Writer, instruction: Instruction) -> bool:
    """redux.sync of integers."""
    _, operation, part = instruction.modifiers
    target, source = instruction.operands[:2]
    kind = KINDS[part]
    value = f"X.reduce('{operation}', {writer.read(source, kind)}, {writer.mask})"
    writer.write(target, kind, value)
    return kind[0] in "ui"


def _multiply(writer: Writer, instruction: Instruction) -> bool:
    """mma.sync m16n8k16 of bf16 with float32 sums."""
    known = "sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
    if ".".join(instruction.modifiers) != known:
        return False
    targets, *fragments = (vector(operand) for operand in instruction.operands)
    kinds = ("u4", "u4", "f4")
    arguments = ", ".join(
        "(" + ", ".join(writer.read(register, kind) for register in fragment) + ",)"
        for fragment, kind in zip(fragments, kinds, strict=True)
    )
    writer.line(f"t = X.multiply({writer.at}, {writer.mask}, {arguments})")
    for at, target in enumerate(targets):
        writer.write(target, "f4", f"t[{at}]")
    return True


def _nothing(_writer: Writer, _instruction: Instruction) -> bool:
    """Fences and prefetches change no value here: memory is written at once, in one order."""
    return True


def _meet(writer: Writer, instruction: Instruction) -> bool:
    """bar.warp.sync; the meeting itself is the launch's."""
    if instruction.modifiers[:2] != ("warp", "sync"):
        return False
    writer.line(f"X.warp_barrier({writer.mask})")
    return True


_HANDLERS: dict[str, Callable[[Writer, Instruction], bool]] = {
    **{"ld": _load, "st": _store, "atom": _atomic, "red": _atomic, "cp": _copy},
    **{"shfl": _shuffle, "vote": _vote, "activemask": _active, "redux": _reduce},
    **{"mma": _multiply, "membar": _nothing, "fence": _nothing, "prefetch": _nothing},
    **{"bar": _meet},
}
