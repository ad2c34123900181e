"""What the fused kernel does with two tiles of ordinary numbers, in float32.

With the device's own approximations, a special function is one instruction with an error of
about 2e-7, below what a sum of float32 loses.  Triton's interpreter knows no assembly, and
takes the portable functions.
"""

import triton
import triton.language as tl

EPS: tl.constexpr = tl.constexpr(1e-9)
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
TINIEST: tl.constexpr = tl.constexpr(1.1754943508222875e-38)  # smallest normal float32
HIGHEST: tl.constexpr = tl.constexpr(40.0)  # e^x of a pair, times x, is within float32
LOWEST: tl.constexpr = tl.constexpr(1e-15)  # squares of less are not
INFINITY: tl.constexpr = tl.constexpr(float("inf"))


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
    """The binary logarithm of x."""
    if FAST:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1
        )
    return tl.log2(x)


@triton.jit
def reciprocal_of(x, FAST: tl.constexpr):
    """1 / x."""
    if FAST:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1
        )
    return 1.0 / x


@triton.jit
def root_of(x, FAST: tl.constexpr):
    """The root of x >= 0."""
    if FAST:
        return tl.inline_asm_elementwise(
            "sqrt.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1
        )
    return tl.sqrt(x)


@triton.jit
def one_where_above_zero(x, FAST: tl.constexpr):
    """1 where x > 0, else 0: what is multiplied by it is selected at the price of the product."""
    if FAST:
        return tl.inline_asm_elementwise(
            "set.gt.f32.f32 $0, $1, 0f00000000;", "=f,f", [x], tl.float32, is_pure=True, pack=1
        )
    return (x > 0).to(tl.float32)


@triton.jit
def add_pair(
    total, square, invert, sigmoid, relu, root, log, log_abs, low, high, exp_x, exp_y,
    x, y, x_counts, y_counts, MASKED: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Add two tiles of ordinary numbers; those that do not count are 0."""
    total += tl.sum(x, axis=2) + tl.sum(y, axis=2)
    square += tl.sum(x * x, axis=2) + tl.sum(y * y, axis=2)
    if MASKED:
        low = tl.minimum(low, tl.min(tl.where(x_counts, x, INFINITY), axis=2))
        low = tl.minimum(low, tl.min(tl.where(y_counts, y, INFINITY), axis=2))
        high = tl.maximum(high, tl.max(tl.where(x_counts, x, -INFINITY), axis=2))
        high = tl.maximum(high, tl.max(tl.where(y_counts, y, -INFINITY), axis=2))
    else:
        low = tl.minimum(low, tl.min(tl.minimum(x, y), axis=2))
        high = tl.maximum(high, tl.max(tl.maximum(x, y), axis=2))

    power_x, power_y = exp2(x * LOG2_E, FAST), exp2(y * LOG2_E, FAST)
    if MASKED:
        power_x = tl.where(x_counts, power_x, 0.0)
        power_y = tl.where(y_counts, power_y, 0.0)
    exp_x += power_x
    exp_y += power_y

    # Four reciprocals, 1 / (x + eps) and 1 / (1 + e^x) of both, from that of their product.
    shifted_x, shifted_y = x + EPS, y + EPS
    above_x, above_y = 1.0 + power_x, 1.0 + power_y
    shifted, above = shifted_x * shifted_y, above_x * above_y
    reciprocal = reciprocal_of(shifted * above, FAST)
    if MASKED:
        both = tl.where(x_counts, shifted_y, 0.0) + tl.where(y_counts, shifted_x, 0.0)
    else:
        both = shifted_x + shifted_y
    invert += tl.sum(both * (above * reciprocal), axis=2)
    both = power_x * above_y + power_y * above_x
    sigmoid += tl.sum(both * (shifted * reciprocal), axis=2)

    size_x, size_y = tl.abs(x), tl.abs(y)
    positive_x, positive_y = one_where_above_zero(x, FAST), one_where_above_zero(y, FAST)
    relu += tl.sum(x * positive_x, axis=2) + tl.sum(y * positive_y, axis=2)
    root_x, root_y = root_of(size_x, FAST), root_of(size_y, FAST)
    root += tl.sum(root_x * positive_x, axis=2) + tl.sum(root_y * positive_y, axis=2)
    # The smallest number that is added keeps the logarithm of 0 finite, and changes no other.
    log_x, log_y = log2(size_x + TINIEST, FAST), log2(size_y + TINIEST, FAST)
    log += tl.sum(log_x * positive_x, axis=2) + tl.sum(log_y * positive_y, axis=2)
    other_x, other_y = one_where_above_zero(size_x, FAST), one_where_above_zero(size_y, FAST)
    log_abs += tl.sum(log_x * other_x, axis=2) + tl.sum(log_y * other_y, axis=2)
    return total, square, invert, sigmoid, relu, root, log, log_abs, low, high, exp_x, exp_y


@triton.jit
def grouped(tile, GROUPS: tl.constexpr, VECTOR: tl.constexpr):
    """What a thread has loaded, along an axis of its own."""
    return tl.reshape(tile, [tile.shape[0], GROUPS, VECTOR]).to(tl.float32)


@triton.jit
def whole(tile):
    """The sum of a tile [rows, groups] in float64."""
    return tl.sum(tl.sum(tile.to(tl.float64), axis=1), axis=0)


@triton.jit
def is_ordinary(count, total, square, low, high, invert, log_abs):
    """Whether what the pair-wise walk has summed is as precise as float32 can be.

    Not so where e^x is too large for products, where squares are too small for float32, where
    the variance is what is left of a difference of large numbers, at the pole of the
    reciprocal, and where anything is infinite or no number (comparisons are false then).
    """
    bound = tl.maximum(-low, high)
    small = (bound <= HIGHEST) & ((bound >= LOWEST) | (bound == 0.0))
    apart = (square - total * total / count >= 0.01 * square) & (square < INFINITY)
    return small & apart & (tl.abs(invert) < INFINITY) & (tl.abs(log_abs) < INFINITY)
