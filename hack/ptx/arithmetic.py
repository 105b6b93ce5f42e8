"""Instructions that compute registers from registers, as Python expressions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hack.ptx.operands import CARRY, KINDS, vector
from hack.ptx.program import Instruction

if TYPE_CHECKING:
    from hack.ptx.translation import Writer

_COMPARISONS = {
    **{"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="},
    **{"lo": "<", "ls": "<=", "hi": ">", "hs": ">="},
}
_UNORDERED = {"equ": "==", "neu": "!=", "ltu": "<", "leu": "<=", "gtu": ">", "geu": ">="}
_APPROXIMATE = {"ex2", "lg2", "tanh", "sin", "cos"}
# Modifiers that change no result here. `.ftz` is not among them.
_HARMLESS = {"rn", "approx", "full", "sync", "aligned", "uni", "lo"}


def arithmetic(writer: Writer, instruction: Instruction) -> bool:
    """Write the instruction, or answer False when it is none of these."""
    handler = _HANDLERS.get(instruction.base)
    if handler is None:
        return False
    return handler(writer, instruction)


def _binary(writer: Writer, instruction: Instruction) -> bool:
    """add, sub, mul, div, rem, min, max, and, or, xor, mad, fma."""
    base, parts = instruction.base, set(instruction.modifiers[:-1])
    part = instruction.modifiers[-1]
    target, *sources = instruction.operands
    if "cc" in parts:
        return base in ("add", "sub") and _carrying(writer, instruction)
    if part in ("bf16x2", "bf16"):
        if parts - {"rn"}:
            return False
        operation = base
        reads = ", ".join(writer.read(s, KINDS[part]) for s in sources)
        value = f"floats.bf16x2('{operation}', {reads})"
        writer.write(target, KINDS[part], value if part == "bf16x2" else f"({value}).astype(u2)")
        return True
    if part == "pred":
        a, b = (writer.read(source, "b1") for source in sources)
        writer.write(target, "b1", f"{a} {_SYMBOLS[base]} {b}")
        return True
    kind = KINDS[part]
    if "wide" in parts:
        wide = f"{kind[0]}{int(kind[1:]) * 2}"
        a, b = (f"{writer.read(s, kind)}.astype({wide})" for s in sources[:2])
        value = f"{a} * {b}"
        if base == "mad":
            value += f" + {writer.read(sources[2], wide)}"
        writer.write(target, wide, value)
        return True
    reads_ = [writer.read(source, kind) for source in sources]
    is_float = kind[0] == "f"
    if parts - _HARMLESS - {"ftz", "hi", "sat", "NaN"} or ("sat" in parts and not is_float):
        return False
    if "ftz" in parts:
        reads_ = [f"floats.flush({r})" for r in reads_]
    if "NaN" in parts:
        value = f"np.{'min' if base == 'min' else 'max'}imum({', '.join(reads_)})"
    elif base in ("fma", "mad") and is_float:
        if kind == "f2":
            return False
        value = f"floats.fma_f{32 if kind == 'f4' else 64}({', '.join(reads_)})"
    elif base in ("mul", "mad") and "hi" in parts:
        value = f"words.high_product({reads_[0]}, {reads_[1]})"
        value += f" + {reads_[2]}" if base == "mad" else ""
    elif base == "mad":
        value = f"{reads_[0]} * {reads_[1]} + {reads_[2]}"
    elif base in ("min", "max"):
        value = (
            f"np.{'f' if is_float else ''}{base}{'' if is_float else 'imum'}({', '.join(reads_)})"
        )
    elif base in ("div", "rem") and not is_float:
        value = f"words.{'quotient' if base == 'div' else 'remainder'}({', '.join(reads_)})"
    else:
        value = f"{reads_[0]} {_SYMBOLS[base]} {reads_[1]}"
    if "ftz" in parts:
        value = f"floats.flush({value})"
    if "sat" in parts:
        value = f"np.clip(np.nan_to_num({value}), {kind}(0), {kind}(1))"
    writer.write(target, kind, value)
    return True


_SYMBOLS = {
    **{"add": "+", "sub": "-", "mul": "*", "div": "/"},
    **{"and": "&", "or": "|", "xor": "^"},
}


def _carrying(writer: Writer, instruction: Instruction) -> bool:
    """add.cc, addc, sub.cc, subc: sums of more words than one. The flag of a sub is its borrow."""
    adds = instruction.base.startswith("add")
    target, a, b = instruction.operands
    kind = "u" + KINDS[instruction.modifiers[-1]][1:]
    writer.line(f"t, s = {writer.read(a, kind)}, {writer.read(b, kind)}")
    flag = writer.read(CARRY, "b1") if instruction.base.endswith("c") else "np.False_"
    writer.line(f"c = {flag}")
    writer.line(f"v = (t {'+' if adds else '-'} s {'+' if adds else '-'} c.astype({kind}))")
    if "cc" in instruction.modifiers:
        less = "(v < t)" if adds else "(t < s)"
        equal = "(v == t)" if adds else "(t == s)"
        writer.write(CARRY, "b1", f"{less} | (c & {equal})")
    writer.write(target, kind, "v")
    return True


def _unary(writer: Writer, instruction: Instruction) -> bool:
    """not, neg, abs, sqrt, rcp, rsqrt, ex2, lg2, tanh, sin, cos, popc, clz, brev, bfind, cnot."""
    base, parts = instruction.base, instruction.modifiers
    target, source = instruction.operands
    kind = KINDS[parts[-1]]
    if set(parts[:-1]) - _HARMLESS - {"ftz"}:
        return False
    value = writer.read(source, kind)
    result = kind
    if parts[-1] in ("bf16x2", "bf16"):
        if base != "neg":
            return False
        value = f"{value} ^ {writer.read('0x80008000' if kind == 'u4' else '0x8000', kind)}"
        writer.write(target, kind, value)
        return True
    if "ftz" in parts:
        value = f"floats.flush({value})"
    if base == "not":
        value = f"~{value}"
    elif base == "cnot":
        value = f"({value} == 0).astype({kind})"
    elif base == "neg":
        value = f"-{value}"
    elif base == "abs":
        value = f"np.abs({value})"
    elif base in ("popc", "clz", "bfind"):
        name = {"popc": "np.bitwise_count", "clz": "words.leading_zeros"}.get(
            base, "words.find_leading"
        )
        value, result = f"{name}({value}).astype(u4)", "u4"
    elif base == "brev":
        value = f"words.reverse_bits({value})"
    elif kind == "f8" and base in ("sqrt", "rcp"):
        value = f"np.sqrt({value})" if base == "sqrt" else f"f8(1) / {value}"
    elif kind == "f4" and base in {*_APPROXIMATE, "sqrt", "rcp", "rsqrt"}:
        value = f"floats.approximate('{base}', {value})"
    else:
        return False  # rcp.approx.ftz.f64 and others that no rounding rule pins down
    writer.write(target, result, f"floats.flush({value})" if "ftz" in parts else value)
    return True


def _shift(writer: Writer, instruction: Instruction) -> bool:
    target, source, amount = instruction.operands
    kind = KINDS[instruction.modifiers[-1]]
    left = instruction.base == "shl"
    if amount.isdigit() and int(amount) < 8 * int(kind[1:]):
        value = f"{writer.read(source, kind)} {'<<' if left else '>>'} {writer.read(amount, kind)}"
    else:
        value = (
            f"words.shift('{'l' if left else 'r'}', {writer.read(source, kind)},"
            f" {writer.read(amount, 'u4')})"
        )
    writer.write(target, kind, value)
    return True


def _bits(writer: Writer, instruction: Instruction) -> bool:
    """lop3, prmt, bfe, bfi, shf."""
    base, parts = instruction.base, instruction.modifiers
    target, *sources = instruction.operands
    kind = KINDS[parts[-1]]
    if base == "lop3":
        a, b, c = (writer.read(source, "u4") for source in sources[:3])
        value = f"words.lop3({a}, {b}, {c}, {int(sources[3], 0)})"
    elif base == "prmt":
        if len(parts) != 1:
            return False
        value = f"words.prmt({', '.join(writer.read(source, 'u4') for source in sources)})"
    elif base == "shf":
        low, high, amount = (writer.read(source, "u4") for source in sources)
        value = f"words.funnel('{parts[0]}', {low}, {high}, {amount}, {parts[1] == 'wrap'})"
    else:
        reads = [writer.read(source, kind) for source in sources[:-2]]
        reads += [writer.read(source, "u4") for source in sources[-2:]]
        value = f"words.{base}({', '.join(reads)})"
    writer.write(target, kind, value)
    return True


def _compare(writer: Writer, instruction: Instruction) -> bool:
    """setp with an optional second result and an optional third predicate."""
    parts = [part for part in instruction.modifiers if part != "ftz"]
    kind = KINDS[parts[-1]]
    targets, a, b, *more = instruction.operands
    x, y = writer.read(a, kind), writer.read(b, kind)
    if parts[0] in _UNORDERED:
        value = f"({x} {_UNORDERED[parts[0]]} {y}) | np.isnan({x}) | np.isnan({y})"
    elif parts[0] in ("num", "nan"):
        value = f"{'~' if parts[0] == 'num' else ''}(np.isnan({x}) | np.isnan({y}))"
    elif parts[0] == "ne" and kind[0] == "f":
        value = f"({x} != {y}) & ~np.isnan({x}) & ~np.isnan({y})"
    else:
        value = f"{x} {_COMPARISONS[parts[0]]} {y}"
    first, *second = targets.split("|")
    symbol = _SYMBOLS[parts[1]] if len(parts) == 3 else ""
    other = ""
    if symbol:
        other = more[0].lstrip("!")
        other = ("~" if more[0].startswith("!") else "") + writer.read(other, "b1")
    writer.line(f"t = np.asarray({value})[()]")
    if second:
        writer.line("s = ~t")
    writer.write(first, "b1", f"t {symbol} {other}" if symbol else "t")
    for register in second:
        writer.write(register, "b1", f"s {symbol} {other}" if symbol else "s")
    return True


def _select(writer: Writer, instruction: Instruction) -> bool:
    target, a, b, chooser = instruction.operands
    kind = KINDS[instruction.modifiers[-1]]
    guard = writer.read(chooser, "b1")
    value = f"np.where({guard}, {writer.read(a, kind)}, {writer.read(b, kind)})[()]"
    writer.write(target, kind, value)
    return True


def _move(writer: Writer, instruction: Instruction) -> bool:
    """mov, also of words to their halves and back; cvta, where spaces share addresses."""
    target, source = instruction.operands
    part = instruction.modifiers[-1]
    kind = KINDS[part]
    if instruction.base == "cvta" and not {"global", "const"} & set(instruction.modifiers):
        if "shared" not in instruction.modifiers:
            return False
        sign = "-" if "to" in instruction.modifiers else "+"
        writer.write(target, kind, f"{writer.read(source, kind)} {sign} {kind}(X.shared_window)")
    elif target.startswith("{"):
        half = f"u{int(kind[1:]) // 2}"
        unsigned = f"u{kind[1:]}"
        parts = vector(target)
        if len(parts) != 2:
            return False
        writer.line(f"t = {writer.read(source, unsigned)}")
        writer.write(parts[0], half, f"t.astype({half})")
        writer.write(parts[1], half, f"(t >> {unsigned}({4 * int(kind[1:])})).astype({half})")
    elif source.startswith("{"):
        half, unsigned = f"u{int(kind[1:]) // 2}", f"u{kind[1:]}"
        low, high = (f"{writer.read(s, half)}.astype({unsigned})" for s in vector(source))
        writer.write(target, unsigned, f"{low} | ({high} << {unsigned}({4 * int(kind[1:])}))")
    else:
        writer.write(target, kind, writer.read(source, kind))
    return True


def _convert(writer: Writer, instruction: Instruction) -> bool:
    """cvt between the types, with the roundings that we know."""
    *parts, to, origin = instruction.modifiers
    target, *sources = instruction.operands
    if to in ("bf16", "bf16x2"):
        if origin != "f32" or set(parts) - {"rn"}:
            return False
        high, *low = (f"floats.f32_to_bf16({writer.read(source, 'f4')})" for source in sources)
        writer.write(target, KINDS[to], f"floats.pair({low[0]}, {high})" if low else high)
        return True
    kind = KINDS[to]
    if origin == "bf16":
        value = f"floats.bf16_to_f32({writer.read(sources[0], 'u2')})"
        writer.write(target, kind, value if to == "f32" else f"({value}).astype({kind})")
        return to in ("f32", "f64")
    source = writer.read(sources[0], KINDS[origin])
    roundings = [part for part in parts if part.startswith("r")]
    if set(parts) - set(roundings) - {"ftz", "sat"} or ("sat" in parts and kind[0] != "f"):
        return False
    if "ftz" in parts and origin == "f32":
        source = f"floats.flush({source})"
    if KINDS[origin][0] == "f" and kind[0] != "f":
        value = f"floats.to_integer({source}, '{roundings[0]}', {kind})"
    elif roundings and roundings[0] in ("rni", "rzi", "rmi", "rpi"):
        value = f"floats.ROUNDINGS['{roundings[0]}']({source}).astype({kind})"
    elif roundings and roundings[0] != "rn":
        return False
    else:
        value = f"{source}.astype({kind})"
    if "sat" in parts:
        value = f"np.clip(np.nan_to_num({value}), {kind}(0), {kind}(1))"
    writer.write(target, kind, value)
    return True


_HANDLERS: dict[str, Callable[..., bool]] = {
    **dict.fromkeys(("add", "sub", "mul", "div", "rem", "min", "max"), _binary),
    **dict.fromkeys(("and", "or", "xor", "mad", "fma"), _binary),
    **dict.fromkeys(("not", "cnot", "neg", "abs", "sqrt", "rcp", "rsqrt"), _unary),
    **dict.fromkeys((*_APPROXIMATE, "popc", "clz", "brev", "bfind"), _unary),
    **dict.fromkeys(("addc", "subc"), _carrying),
    **dict.fromkeys(("shl", "shr"), _shift),
    **dict.fromkeys(("lop3", "prmt", "bfe", "bfi", "shf"), _bits),
    **{"setp": _compare, "selp": _select, "mov": _move, "cvta": _move, "cvt": _convert},
}
