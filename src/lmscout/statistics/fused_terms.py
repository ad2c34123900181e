"""What the fused kernel does with tiles of ordinary numbers, in float32.

With the device's own approximations, a special function is one instruction with an error of
about 2e-7, below what a sum of float32 loses.  Triton's interpreter knows no assembly, and
takes the portable functions.
"""

import triton
import triton.language as tl

EPS: tl.constexpr = tl.constexpr(1e-9)
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
LIFT: tl.constexpr = tl.constexpr(108.0)  # binary logarithm of LIFTING
LIFTING: tl.constexpr = tl.constexpr(2.0**108)
HIGHEST: tl.constexpr = tl.constexpr(21.0)  # e^x of four, multiplied, is within float32
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
def one_where_not_above_zero(x, FAST: tl.constexpr):
    """1 where x <= 0, else 0; a comparison that gives a number costs one instruction."""
    if FAST:
        return tl.inline_asm_elementwise(
            "set.le.f32.f32 $0, $1, 0f00000000;", "=f,f", [x], tl.float32, is_pure=True, pack=1
        )
    return (x <= 0).to(tl.float32)


@triton.jit
def one_where_zero(x, FAST: tl.constexpr):
    """1 where x = 0, else 0."""
    if FAST:
        return tl.inline_asm_elementwise(
            "set.eq.f32.f32 $0, $1, 0f00000000;", "=f,f", [x], tl.float32, is_pure=True, pack=1
        )
    return (x == 0).to(tl.float32)


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


@triton.jit
def add_quads(
    total, square, size, invert, sigmoid, root, log, log_abs, low, high, powers,
    raw_a, raw_b, raw_c, raw_d, a_counts, b_counts, c_counts, d_counts,
    MASKED: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Add four tiles of ordinary numbers from the same columns; those that do not count are 0.

    `log` and `log_abs` grow by LIFT more than they should for every four numbers.
    """
    kept_a, kept_b = raw_a.to(low.dtype), raw_b.to(low.dtype)
    kept_c, kept_d = raw_c.to(low.dtype), raw_d.to(low.dtype)
    if MASKED:
        low = lower(low, tl.where(a_counts, kept_a, INFINITY), FAST)
        low = lower(low, tl.where(b_counts, kept_b, INFINITY), FAST)
        low = lower(low, tl.where(c_counts, kept_c, INFINITY), FAST)
        low = lower(low, tl.where(d_counts, kept_d, INFINITY), FAST)
        high = higher(high, tl.where(a_counts, kept_a, -INFINITY), FAST)
        high = higher(high, tl.where(b_counts, kept_b, -INFINITY), FAST)
        high = higher(high, tl.where(c_counts, kept_c, -INFINITY), FAST)
        high = higher(high, tl.where(d_counts, kept_d, -INFINITY), FAST)
    else:
        low = lower(low, lower(kept_a, kept_b, FAST), FAST)
        low = lower(low, lower(kept_c, kept_d, FAST), FAST)
        high = higher(high, higher(kept_a, kept_b, FAST), FAST)
        high = higher(high, higher(kept_c, kept_d, FAST), FAST)

    a, b = raw_a.to(tl.float32), raw_b.to(tl.float32)
    c, d = raw_c.to(tl.float32), raw_d.to(tl.float32)
    total += tl.sum((a + b) + (c + d), axis=2)
    square += tl.sum(a * a + b * b + c * c + d * d, axis=2)
    size_a, size_b, size_c, size_d = tl.abs(a), tl.abs(b), tl.abs(c), tl.abs(d)
    size += tl.sum((size_a + size_b) + (size_c + size_d), axis=2)

    # Four quotients over one product, 1 / (x + eps) and, below, e^x / (1 + e^x).
    near_a, near_b, near_c, near_d = a + EPS, b + EPS, c + EPS, d + EPS
    if MASKED:
        near_a, near_b = tl.where(a_counts, near_a, 1.0), tl.where(b_counts, near_b, 1.0)
        near_c, near_d = tl.where(c_counts, near_c, 1.0), tl.where(d_counts, near_d, 1.0)
        first = tl.where(a_counts, near_b, 0.0) + tl.where(b_counts, near_a, 0.0)
        second = tl.where(c_counts, near_d, 0.0) + tl.where(d_counts, near_c, 0.0)
    else:
        first, second = near_a + near_b, near_c + near_d
    under_first, under_second = near_a * near_b, near_c * near_d
    over = tl.fma(first, under_second, second * under_first)
    invert += tl.sum(over * reciprocal_of(under_first * under_second, FAST), axis=2)

    power_a, power_b = exp2(a * LOG2_E, FAST), exp2(b * LOG2_E, FAST)
    power_c, power_d = exp2(c * LOG2_E, FAST), exp2(d * LOG2_E, FAST)
    if MASKED:
        power_a, power_b = tl.where(a_counts, power_a, 0.0), tl.where(b_counts, power_b, 0.0)
        power_c, power_d = tl.where(c_counts, power_c, 0.0), tl.where(d_counts, power_d, 0.0)
    first, second = power_a + power_b, power_c + power_d
    powers += first + second
    # With s = p + q: p / (1 + p) + q / (1 + q) = (s + 2 p q) / (1 + s + p q).
    first, second = tl.fma(power_a, power_b, first), tl.fma(power_c, power_d, second)
    under_first, under_second = first + 1.0, second + 1.0
    first, second = tl.fma(power_a, power_b, first), tl.fma(power_c, power_d, second)
    over = tl.fma(first, under_second, second * under_first)
    sigmoid += tl.sum(over * reciprocal_of(under_first * under_second, FAST), axis=2)

    above_a, above_b = tl.maximum(a, 0.0), tl.maximum(b, 0.0)
    above_c, above_d = tl.maximum(c, 0.0), tl.maximum(d, 0.0)
    first = root_of(above_a, FAST) + root_of(above_b, FAST)
    root += tl.sum(first + (root_of(above_c, FAST) + root_of(above_d, FAST)), axis=2)
    # One logarithm of a product, with 1 for what has none, lifted away from float32's underflow.
    first = (above_a + one_where_not_above_zero(a, FAST)) * LIFTING
    first *= above_b + one_where_not_above_zero(b, FAST)
    second = above_c + one_where_not_above_zero(c, FAST)
    second *= above_d + one_where_not_above_zero(d, FAST)
    log += tl.sum(log2(first * second, FAST), axis=2)
    first = (size_a + one_where_zero(a, FAST)) * LIFTING
    first *= size_b + one_where_zero(b, FAST)
    second = size_c + one_where_zero(c, FAST)
    second *= size_d + one_where_zero(d, FAST)
    log_abs += tl.sum(log2(first * second, FAST), axis=2)
    return total, square, size, invert, sigmoid, root, log, log_abs, low, high, powers


@triton.jit
def join_walked(
    total_a, square_a, size_a, invert_a, sigmoid_a, root_a, log_a, log_abs_a, exp_a, low_a, high_a,
    total_b, square_b, size_b, invert_b, sigmoid_b, root_b, log_b, log_abs_b, exp_b, low_b, high_b,
):  # fmt: skip
    """What two threads have summed: all fields in one exchange."""
    return (
        total_a + total_b, square_a + square_b, size_a + size_b, invert_a + invert_b,
        sigmoid_a + sigmoid_b, root_a + root_b, log_a + log_b, log_abs_a + log_abs_b,
        exp_a + exp_b, tl.minimum(low_a, low_b), tl.maximum(high_a, high_b),
    )  # fmt: skip


@triton.jit
def right_edge(row, bottom, right, n, n_columns):
    """The column before which a row's numbers count; of 32 bits, as there is one a row."""
    edge = tl.minimum(right, n - row * n_columns)
    return tl.where(row < bottom, edge, 0).to(tl.int32)


@triton.jit
def grouped(tile, GROUPS: tl.constexpr, VECTOR: tl.constexpr):
    """What a thread has loaded, along an axis of its own."""
    return tl.reshape(tile, [tile.shape[0], GROUPS, VECTOR]).to(tl.float32)


@triton.jit
def whole(tile):
    """The sum of a tile [rows, groups] in float64."""
    return tl.sum(tl.sum(tile.to(tl.float64), axis=1), axis=0)


@triton.jit
def is_ordinary(count, total, square, low, high, invert, log, log_abs):
    """Whether what the walk four by four has summed is as precise as float32 can be.

    Not so where e^x is too large for products, where squares are too small for float32, where
    the variance is what is left of a difference of large numbers, at the pole of the
    reciprocal, where a product of four underflows, and where anything is infinite or no number
    (comparisons are false then).
    """
    bound = tl.maximum(-low, high)
    small = (bound <= HIGHEST) & ((bound >= LOWEST) | (bound == 0.0))
    apart = (square - total * total / count >= 0.01 * square) & (square < INFINITY)
    defined = (tl.abs(log) < INFINITY) & (tl.abs(log_abs) < INFINITY)
    return small & apart & defined & (tl.abs(invert) < INFINITY)
