"""What the fused kernel does with tiles of small numbers, in float32: sums of their powers.

The weights of a trained model, and much else, are so small that 1 + x + x^2 / 2 + x^3 / 6 +
x^4 / 24 is e^x, and 1 / 2 + x / 4 - x^3 / 48 the sigmoid, to float32's precision.  The sums of
both follow from the sums of four powers, two of which are wanted anyway: neither an exponential
nor a division is left of them.  Whether numbers were small enough shows afterwards, in the
sum of fourth powers (see `is_small`), so that a few large ones among many small ones do not
matter.
"""

import triton
import triton.language as tl

from lmscout.statistics.fused_instructions import higher, lower, reciprocal_of, times, widened
from lmscout.statistics.fused_products import EIGHTS, add_positives, add_sizes

FIFTH: tl.constexpr = tl.constexpr(1e-5)  # the mean of |x|^5 at most: e^x is 8e-8 off by it
ROOM: tl.constexpr = tl.constexpr(2.0**15)  # eight factors of as much fit into float32, and so
ROOM_OF_FOURTHS: tl.constexpr = tl.constexpr(2.0**66)  # do any whose fourth powers sum to this
LEAST_LIFT: tl.constexpr = tl.constexpr(2.0**15)  # (2**15 * 1e-9)**8 is above 2**-120


@triton.jit
def looks_small(a, b, c, d):
    """Whether four tiles of a piece are of small numbers.

    Returns:
        1 or 0, and the power of two that lifts the largest of them to between 512 and 1,024, or
        more: eight as large, or 32 times as large, do not overflow, and eight zeros plus 1e-9 do
        not underflow.  What is not above 1 stays below ROOM under the least lift.
    """
    a, b, c, d = tl.abs(a), tl.abs(b), tl.abs(c), tl.abs(d)
    bound = tl.maximum(tl.maximum(a, b), tl.maximum(c, d))
    a, b, c, d = a * a, b * b, c * c, d * d
    fourth = (a * a + b * b) + (c * c + d * d)
    COUNT: tl.constexpr = 4 * a.shape[0] * a.shape[1]
    bound = tl.max(tl.max(bound, axis=1), axis=0)
    fourth = tl.sum(tl.sum(fourth, axis=1), axis=0)
    # Not so small either that products of eight would be too small for float32.
    small = (bound <= 0.5) & (bound >= 2.0**-22) & (bound * fourth <= 0.5 * FIFTH * COUNT)
    power = bound.to(tl.int32, bitcast=True) & 0x7F800000
    lift = (0x44000000 - (power - 0x3F800000)).to(tl.float32, bitcast=True)  # 512 over the power
    return small.to(tl.int32), tl.where(small, tl.maximum(lift, LEAST_LIFT), 1.0)


@triton.jit
def is_small(count, fourth, bound, lift):
    """Whether what was added as small numbers was small.

    The fifth powers, the first that are left out, sum to at most `bound` times the fourth ones.
    Products of eight fit into float32 if each number, lifted, is below ROOM; or if their fourth
    powers sum to little, since a geometric mean is not above the arithmetic one.  Products that
    underflow show as infinities.
    """
    wide = lift.to(tl.float64)
    fits = (bound * lift <= ROOM) | (fourth * (wide * wide * wide * wide) <= ROOM_OF_FOURTHS)
    return (bound < 2.0) & fits & (bound * fourth <= FIFTH * count)


@triton.jit
def add_small(
    first, second, third, fourth, size, invert, roots, logs, log_sizes, low, high,
    raw_a, raw_b, raw_c, raw_d, lift, lifted_eps,
    FAST: tl.constexpr,
):  # fmt: skip
    """Add four tiles of small numbers from the same columns.

    `first` to `fourth` are sums of powers, a column for itself.  `invert` is `lift` times as
    small as it should be, and `logs` and `log_sizes` grow by LIFT_OF_EIGHTS more than they
    should for every eight numbers (every four where a thread has one column).
    """
    kept_a, kept_b = raw_a.to(low.dtype), raw_b.to(low.dtype)
    kept_c, kept_d = raw_c.to(low.dtype), raw_d.to(low.dtype)
    low = lower(low, lower(kept_a, kept_b, FAST), FAST)
    low = lower(low, lower(kept_c, kept_d, FAST), FAST)
    high = higher(high, higher(kept_a, kept_b, FAST), FAST)
    high = higher(high, higher(kept_c, kept_d, FAST), FAST)

    a, b = widened(raw_a, FAST), widened(raw_b, FAST)
    c, d = widened(raw_c, FAST), widened(raw_d, FAST)
    first += (a + b) + (c + d)
    size += tl.sum((tl.abs(a) + tl.abs(b)) + (tl.abs(c) + tl.abs(d)), axis=2)
    square_a, square_b, square_c, square_d = a * a, b * b, c * c, d * d
    second += (square_a + square_b) + (square_c + square_d)
    third = tl.fma(square_b, b, tl.fma(square_a, a, third))
    third = tl.fma(square_d, d, tl.fma(square_c, c, third))
    fourth = tl.fma(square_b, square_b, tl.fma(square_a, square_a, fourth))
    fourth = tl.fma(square_d, square_d, tl.fma(square_c, square_c, fourth))

    # Eight quotients 1 / (x + eps) over one product, lifted to about 1.
    near_a, near_b = tl.fma(a, lift, lifted_eps), tl.fma(b, lift, lifted_eps)
    near_c, near_d = tl.fma(c, lift, lifted_eps), tl.fma(d, lift, lifted_eps)
    under_first, under_second = times(near_a, near_b, FAST), times(near_c, near_d, FAST)
    over = tl.fma(near_a + near_b, under_second, (near_c + near_d) * under_first)
    under = times(under_first, under_second, FAST)
    if under.shape[2] > 1:
        PAIRS: tl.constexpr = [under.shape[0], under.shape[1], under.shape[2] // 2, 2]
        over_left, over_right = tl.split(tl.reshape(over, PAIRS))
        left, right = tl.split(tl.reshape(under, PAIRS))
        over = tl.fma(over_left, right, over_right * left)
        under = times(left, right, FAST)
    invert += tl.sum(over * reciprocal_of(under, FAST), axis=2)

    roots, logs = add_positives(roots, logs, a, b, c, d, raw_a, raw_b, raw_c, raw_d, EIGHTS, FAST)
    log_sizes = add_sizes(log_sizes, a, b, c, d, EIGHTS, FAST)
    return first, second, third, fourth, size, invert, roots, logs, log_sizes, low, high


@triton.jit
def exponentials_of(count, first, second, third, fourth):
    """The sum of e^x of as many numbers from the sums of their powers."""
    return count + (first + (0.5 * second + (third * (1 / 6) + fourth * (1 / 24))))


@triton.jit
def sigmoids_of(count, first, third):
    """The sum of their sigmoids."""
    return 0.5 * count + (0.25 * first - third * (1 / 48))
