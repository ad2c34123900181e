"""The device's own instructions, one at a time, and what stands in for them elsewhere.

A special function is one instruction with an error of about 2e-7, below what a sum of float32
loses.  Triton's interpreter knows no assembly, and takes the portable functions.
"""

import triton
import triton.language as tl

SMALLEST: tl.constexpr = tl.constexpr(2.0**-126)  # a product of less is taken for 0


@triton.jit
def exp2(x, FAST: tl.constexpr):
    """2 to the power of x."""
    if FAST:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1
        )
    return tl.exp2(x)


@triton.jit
def log2(x, FAST: tl.constexpr):
    """The binary logarithm of x; what is less than SMALLEST counts as 0."""
    if FAST:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1
        )
    return tl.log2(tl.where(x < SMALLEST, 0.0, x))


@triton.jit
def reciprocal_of(x, FAST: tl.constexpr):
    """1 / x; what is less than SMALLEST counts as 0."""
    if FAST:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1
        )
    return 1.0 / tl.where(tl.abs(x) < SMALLEST, 0.0, x)


@triton.jit
def times(x, y, FAST: tl.constexpr):
    """The product, 0 where float32 would lose digits of it: a zero shows in all that follows."""
    if FAST:
        return tl.inline_asm_elementwise(
            "mul.rn.ftz.f32 $0, $1, $2;", "=f,f,f", [x, y], tl.float32, is_pure=True, pack=1
        )
    product = x * y
    return tl.where(tl.abs(product) < SMALLEST, 0.0, product)


@triton.jit
def widened(x, FAST: tl.constexpr):
    """A tile [rows, groups, vector] in float32: one instruction an element of bfloat16 too."""
    if FAST and x.dtype == tl.bfloat16 and x.shape[2] > 1:
        return tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=&r,=r,r", [x], tl.int32,
            is_pure=True, pack=2,
        ).to(tl.float32, bitcast=True)  # fmt: skip
    else:
        return x.to(tl.float32)


@triton.jit
def unknown(x, FAST: tl.constexpr):
    """x, hidden from the compiler.

    It would sum what is summed alike after a loop in vectors, which the device does not have,
    and carry a second copy of each through the loop for it.
    """
    if FAST:
        return tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1
        )
    return x


@triton.jit
def lower(x, y, FAST: tl.constexpr):
    """The lower of x and y: two at a time where they are of 16 bits."""
    if FAST and x.dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            "min.bf16x2 $0, $1, $2;", "=r,r,r", [x, y], tl.bfloat16, is_pure=True, pack=2
        )
    elif FAST and x.dtype == tl.float16:
        return tl.inline_asm_elementwise(
            "min.f16x2 $0, $1, $2;", "=r,r,r", [x, y], tl.float16, is_pure=True, pack=2
        )
    else:
        return tl.minimum(x, y)


@triton.jit
def higher(x, y, FAST: tl.constexpr):
    """The higher of x and y."""
    if FAST and x.dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            "max.bf16x2 $0, $1, $2;", "=r,r,r", [x, y], tl.bfloat16, is_pure=True, pack=2
        )
    elif FAST and x.dtype == tl.float16:
        return tl.inline_asm_elementwise(
            "max.f16x2 $0, $1, $2;", "=r,r,r", [x, y], tl.float16, is_pure=True, pack=2
        )
    else:
        return tl.maximum(x, y)
