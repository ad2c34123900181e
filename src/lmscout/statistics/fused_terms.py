"""What the fused kernel does with tiles of ordinary numbers, in float32."""

import triton
import triton.language as tl

from lmscout.statistics.fused_instructions import (
    exp2,
    higher,
    lower,
    reciprocal_of,
    times,
    widened,
)
from lmscout.statistics.fused_products import QUADS, add_positives, add_sizes

EPS: tl.constexpr = tl.constexpr(1e-9)
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
HIGHEST: tl.constexpr = tl.constexpr(18.0)  # e^x of four times x of four is within float32
LOWEST: tl.constexpr = tl.constexpr(1e-15)  # squares of less are not
INFINITY: tl.constexpr = tl.constexpr(float("inf"))


@triton.jit
def add_quads(
    total, square, size, invert, sigmoid, roots, logs, log_sizes, low, high, powers,
    raw_a, raw_b, raw_c, raw_d, a_counts, b_counts, c_counts, d_counts,
    MASKED: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Add four tiles of ordinary numbers from the same columns; those that do not count are 0.

    `logs` and `log_sizes` grow by LIFT_OF_QUADS more than they should for every four numbers.
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

    a, b = widened(raw_a, FAST), widened(raw_b, FAST)
    c, d = widened(raw_c, FAST), widened(raw_d, FAST)
    total += tl.sum((a + b) + (c + d), axis=2)
    square += tl.sum(a * a + b * b + c * c + d * d, axis=2)
    size += tl.sum((tl.abs(a) + tl.abs(b)) + (tl.abs(c) + tl.abs(d)), axis=2)

    # Four quotients over one product, 1 / (x + eps) and, below, e^x / (1 + e^x); then one
    # reciprocal for the products of both.
    near_a, near_b, near_c, near_d = a + EPS, b + EPS, c + EPS, d + EPS
    if MASKED:
        near_a, near_b = tl.where(a_counts, near_a, 1.0), tl.where(b_counts, near_b, 1.0)
        near_c, near_d = tl.where(c_counts, near_c, 1.0), tl.where(d_counts, near_d, 1.0)
        first = tl.where(a_counts, near_b, 0.0) + tl.where(b_counts, near_a, 0.0)
        second = tl.where(c_counts, near_d, 0.0) + tl.where(d_counts, near_c, 0.0)
    else:
        first, second = near_a + near_b, near_c + near_d
    under_first, under_second = times(near_a, near_b, FAST), times(near_c, near_d, FAST)
    inverse = tl.fma(first, under_second, second * under_first)
    under_inverse = times(under_first, under_second, FAST)

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
    under = under_first * under_second
    shared = reciprocal_of(times(under_inverse, under, FAST), FAST)
    invert += tl.sum(inverse * (shared * under), axis=2)
    sigmoid += tl.sum(over * (shared * under_inverse), axis=2)

    roots, logs = add_positives(roots, logs, a, b, c, d, raw_a, raw_b, raw_c, raw_d, QUADS, FAST)
    log_sizes = add_sizes(log_sizes, a, b, c, d, QUADS, FAST)
    return total, square, size, invert, sigmoid, roots, logs, log_sizes, low, high, powers


@triton.jit
def join_walked(
    total_a, square_a, fourth_a, size_a, invert_a, sigmoid_a, root_a, log_a, log_abs_a, exp_a,
    low_a, high_a,
    total_b, square_b, fourth_b, size_b, invert_b, sigmoid_b, root_b, log_b, log_abs_b, exp_b,
    low_b, high_b,
):  # fmt: skip
    """What two threads have summed: all fields in one exchange."""
    return (
        total_a + total_b, square_a + square_b, fourth_a + fourth_b, size_a + size_b,
        invert_a + invert_b, sigmoid_a + sigmoid_b, root_a + root_b, log_a + log_b,
        log_abs_a + log_abs_b, exp_a + exp_b, tl.minimum(low_a, low_b), tl.maximum(high_a, high_b),
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
def is_ordinary(count, total, square, bound, invert, log, log_abs):
    """Whether what the walk four by four has summed is as precise as float32 can be.

    Not so where e^x is too large for products, where squares are too small for float32, where
    the variance is what is left of a difference of large numbers, at the pole of the
    reciprocal, where a product underflows, and where anything is infinite or no number
    (comparisons are false then).
    """
    small = (bound <= HIGHEST) & ((bound >= LOWEST) | (bound == 0.0))
    apart = (square - total * total / count >= 0.01 * square) & (square < INFINITY)
    defined = (tl.abs(log) < INFINITY) & (tl.abs(log_abs) < INFINITY)
    return small & apart & defined & (tl.abs(invert) < INFINITY)
