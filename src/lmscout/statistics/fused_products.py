"""Roots and logarithms: one logarithm of a product of several elements.

On a device they are blocks of instructions for all elements that a thread has in a step.  What
is above zero is told by a predicate, under which the root is added and the element multiplied
to the product: four instructions, where choosing what to add and to multiply takes six.
An element of zero has no logarithm, and shows as that of a product of zero, which is then
taken again without it.  A product too small for float32 becomes zero too, and its logarithm
stays infinite.
"""

import struct

import triton
import triton.language as tl

from lmscout.statistics.fused_instructions import log2, times

QUADS: tl.constexpr = tl.constexpr(1)  # columns whose elements, four each, are multiplied
EIGHTS: tl.constexpr = tl.constexpr(2)
LIFT_OF_QUADS: tl.constexpr = tl.constexpr(108.0)  # what binary logarithms are lifted by: four
LIFT_OF_EIGHTS: tl.constexpr = tl.constexpr(120.0)  # of up to 18 fit below it, eight of up to 1

_VECTORS = (1, 2, 4, 8)  # elements of a row that a thread may have
_LIFTS = {1: LIFT_OF_QUADS.value, 2: LIFT_OF_EIGHTS.value}


def _float(value: float) -> str:
    """A float32 as the assembler reads it."""
    return "0f" + struct.pack(">f", value).hex().upper()


def _chains(vector: int, together: int) -> list[range]:
    """Columns whose elements are multiplied together."""
    together = min(vector, together)
    return [range(start, start + together) for start in range(0, vector, together)]


def _positives(vector: int, together: int, pairs: bool = False) -> str:
    """What `add_positives` does: roots, logs <- a, b, c, d, roots, logs, into the first column.

    With `pairs`, elements of 16 bits come after these, two in a register, and are compared so.
    """
    lines = [".reg .pred above0, above1;", ".reg .f32 sum, sums, logs, product, x;"]
    lines += [f"mov.f32 ${place}, ${6 * vector + place};" for place in range(2 * vector)]
    lines += [".reg .b32 zeros;", "mov.b32 zeros, 0;"] if pairs else []
    chains = _chains(vector, together)
    for chain in chains:
        lines.append(f"mov.f32 product, {_float(2.0 ** _LIFTS[together])};")
        for column in chain[:: 2 if pairs else 1]:
            for row in range(4):
                first = 2 * vector + row * vector + column
                if pairs:
                    pair = 8 * vector + row * (vector // 2) + column // 2
                    lines.append(f"setp.gt.bf16x2 above0|above1, ${pair}, zeros;")
                else:
                    lines.append(f"setp.gt.f32 above0, ${first}, {_float(0.0)};")
                for place in range(2 if pairs else 1):
                    element, above = f"${first + place}", f"above{place}"
                    lines.append(f"sqrt.approx.ftz.f32 x, {element};")
                    if column + place == chain[0] and row == 0:
                        lines.append(f"selp.f32 sum, x, {_float(0.0)}, {above};")
                    else:
                        lines.append(f"@{above} add.f32 sum, sum, x;")
                    lines.append(f"@{above} mul.ftz.f32 product, product, {element};")
        lines += _logarithm(chain == chains[0])
        lines.append("mov.f32 sums, sum;" if chain == chains[0] else "add.f32 sums, sums, sum;")
    lines += ["add.f32 $0, $0, sums;", f"add.f32 ${vector}, ${vector}, logs;"]
    return _block(lines)


def _sizes(vector: int, together: int) -> str:
    """What `add_sizes` does: logs <- a, b, c, d, logs, all into the first column."""
    lines = [".reg .pred zero, counts;", ".reg .f32 logs, product, x;"]
    lines += [f"mov.f32 ${column}, ${5 * vector + column};" for column in range(vector)]
    chains = _chains(vector, together)
    for guarded in (False, True):
        for chain in chains:
            lines.append(f"mov.f32 product, {_float(2.0 ** _LIFTS[together])};")
            for place in (row * vector + column for column in chain for row in range(4)):
                lines.append(f"abs.f32 x, ${vector + place};")
                if guarded:
                    lines.append(f"setp.ne.f32 counts, x, {_float(0.0)};")
                condition = "@counts " if guarded else ""
                lines.append(f"{condition}mul.ftz.f32 product, product, x;")
            lines += _logarithm(chain == chains[0])
        if not guarded:
            lines.append(f"setp.eq.f32 zero, logs, {_float(float('-inf'))};")
            lines.append("@!zero bra DONE;")
    lines += ["DONE:", "add.f32 $0, $0, logs;"]
    return _block(lines)


def _logarithm(first: bool) -> list[str]:
    """The logarithm of a product added to the others."""
    if first:
        return ["lg2.approx.ftz.f32 logs, product;"]
    return ["lg2.approx.ftz.f32 x, product;", "add.f32 logs, logs, x;"]


def _block(lines: list[str]) -> str:
    return "\n".join(("{", *lines, "}"))


def _registers(outputs: int, floats: int, pairs: int, vector: int) -> str:
    """What a block writes (before it has read all) and reads: float32, and pairs of 16 bits."""
    names = ["=&f"] * outputs * vector + ["f"] * floats * vector + ["r"] * pairs * (vector // 2)
    return ",".join(names)


_OF_QUADS: tl.constexpr = tl.constexpr({n: _positives(n, 1) for n in _VECTORS})
_OF_EIGHTS: tl.constexpr = tl.constexpr({n: _positives(n, 2) for n in _VECTORS})
_OF_PAIRS: tl.constexpr = tl.constexpr({n: _positives(n, 2, True) for n in _VECTORS[1:]})
_SIZES_OF_QUADS: tl.constexpr = tl.constexpr({n: _sizes(n, 1) for n in _VECTORS})
_SIZES_OF_EIGHTS: tl.constexpr = tl.constexpr({n: _sizes(n, 2) for n in _VECTORS})
_REGISTERS: tl.constexpr = tl.constexpr({n: _registers(2, 6, 0, n) for n in _VECTORS})
_REGISTERS_OF_PAIRS: tl.constexpr = tl.constexpr({n: _registers(2, 6, 4, n) for n in _VECTORS})
_REGISTERS_OF_SIZES: tl.constexpr = tl.constexpr({n: _registers(1, 5, 0, n) for n in _VECTORS})


@triton.jit
def add_positives(
    roots, logs, a, b, c, d, raw_a, raw_b, raw_c, raw_d,
    TOGETHER: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Add the roots of what is above 0, and binary logarithms of products of it, lifted."""
    VECTOR: tl.constexpr = a.shape[2]
    if FAST >= 90 and raw_a.dtype == tl.bfloat16 and TOGETHER == EIGHTS and VECTOR > 1:
        return tl.inline_asm_elementwise(
            _OF_PAIRS[VECTOR], _REGISTERS_OF_PAIRS[VECTOR],
            [a, b, c, d, roots, logs, raw_a, raw_b, raw_c, raw_d],
            (tl.float32, tl.float32), is_pure=True, pack=VECTOR,
        )  # fmt: skip
    elif FAST:
        return tl.inline_asm_elementwise(
            _OF_QUADS[VECTOR] if TOGETHER == QUADS else _OF_EIGHTS[VECTOR], _REGISTERS[VECTOR],
            [a, b, c, d, roots, logs], (tl.float32, tl.float32), is_pure=True, pack=VECTOR,
        )  # fmt: skip
    else:
        above_a, above_b = tl.maximum(a, 0.0), tl.maximum(b, 0.0)
        above_c, above_d = tl.maximum(c, 0.0), tl.maximum(d, 0.0)
        roots += (tl.sqrt(above_a) + tl.sqrt(above_b)) + (tl.sqrt(above_c) + tl.sqrt(above_d))
        logs += _logs(above_a, above_b, above_c, above_d, TOGETHER)
        return roots, logs


@triton.jit
def add_sizes(logs, a, b, c, d, TOGETHER: tl.constexpr, FAST: tl.constexpr):
    """Add binary logarithms of products of |x|, lifted, where x is not 0."""
    if FAST:
        VECTOR: tl.constexpr = a.shape[2]
        return tl.inline_asm_elementwise(
            _SIZES_OF_QUADS[VECTOR] if TOGETHER == QUADS else _SIZES_OF_EIGHTS[VECTOR],
            _REGISTERS_OF_SIZES[VECTOR], [a, b, c, d, logs], tl.float32, is_pure=True, pack=VECTOR,
        )  # fmt: skip
    else:
        return logs + _logs(tl.abs(a), tl.abs(b), tl.abs(c), tl.abs(d), TOGETHER)


@triton.jit
def _logs(a, b, c, d, TOGETHER: tl.constexpr):
    """What `add_positives` and `add_sizes` add, in portable functions."""
    ROWS: tl.constexpr = a.shape[0]
    GROUPS: tl.constexpr = a.shape[1]
    VECTOR: tl.constexpr = a.shape[2]
    BY_COLUMN: tl.constexpr = TOGETHER == QUADS or VECTOR == 1
    LIFT: tl.constexpr = LIFT_OF_QUADS if TOGETHER == QUADS else LIFT_OF_EIGHTS
    LIFTING: tl.constexpr = 2.0 ** (LIFT if BY_COLUMN else 0.5 * LIFT)
    product = times(_or_one(a) * LIFTING, _or_one(b), False)
    product = times(times(product, _or_one(c), False), _or_one(d), False)
    if BY_COLUMN:
        return log2(product, False)
    else:
        left, right = tl.split(tl.reshape(product, [ROWS, GROUPS, VECTOR // 2, 2]))
        logs = log2(times(left, right, False), False)
        return tl.reshape(tl.join(logs, tl.zeros_like(logs)), [ROWS, GROUPS, VECTOR])


@triton.jit
def _or_one(size):
    return tl.where(size == 0.0, 1.0, size)
