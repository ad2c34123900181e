"""How the fused kernel joins what the pieces of a tensor, and the parts of its columns, have.

Always in one order, and with all numbers of many pieces under way at once: the last program of
a tensor does this while nothing else is left to do.
"""

import triton
import triton.language as tl

from lmscout.statistics.fused_terms import INFINITY

CHUNK: tl.constexpr = tl.constexpr(256)  # pieces that are joined at a time
PARTS: tl.constexpr = tl.constexpr(16)  # of a column, likewise


@triton.jit
def _join(
    n_a, mean_a, relu_a, own_a, between_a, exp_a, invert_a, sigmoid_a, root_a, log_a, log_abs_a,
    low_a, high_a,
    n_b, mean_b, relu_b, own_b, between_b, exp_b, invert_b, sigmoid_b, root_b, log_b, log_abs_b,
    low_b, high_b,
):  # fmt: skip
    return (
        n_a + n_b, mean_a + mean_b, relu_a + relu_b, own_a + own_b, between_a + between_b,
        exp_a + exp_b, invert_a + invert_b, sigmoid_a + sigmoid_b, root_a + root_b,
        log_a + log_b, log_abs_a + log_abs_b,
        tl.minimum(low_a, low_b), tl.maximum(high_a, high_b),
    )  # fmt: skip


@triton.jit
def _found(sums, field: tl.constexpr, n_pieces, there, other):
    return tl.load(sums + field * n_pieces, mask=there, other=other, cache_modifier=".cg")


@triton.jit
def join_pieces(
    sums, totals, lse, first, count, n_pieces, first_stripe, n_stripes, n_columns, axis,
):  # fmt: skip
    """The totals of a tensor from what its pieces found, in the order of the pieces."""
    # Means are joined as differences from the first, so that those that agree stay as they are.
    first_mean = tl.load(sums + first + n_pieces, cache_modifier=".cg")
    first_relu = tl.load(sums + first + 5 * n_pieces, cache_modifier=".cg")
    zero = tl.zeros([CHUNK], tl.float64)
    n, mean, relu, own, between = zero, zero, zero, zero, zero
    exp, invert, sigmoid, root, log, log_abs = zero, zero, zero, zero, zero, zero
    logs = zero
    low, high = zero + INFINITY, zero - INFINITY
    for start in range(0, count, CHUNK):
        piece = start + tl.arange(0, CHUNK)
        there = piece < count
        at = sums + first + piece
        size = _found(at, 0, n_pieces, there, 0.0)
        apart = _found(at, 1, n_pieces, there, first_mean) - first_mean
        n += size
        mean += size * apart
        between += size * apart * apart
        own += _found(at, 2, n_pieces, there, 0.0)
        low = tl.minimum(low, _found(at, 3, n_pieces, there, INFINITY))
        high = tl.maximum(high, _found(at, 4, n_pieces, there, -INFINITY))
        relu += size * (_found(at, 5, n_pieces, there, first_relu) - first_relu)
        exp += _found(at, 6, n_pieces, there, 0.0)
        invert += _found(at, 7, n_pieces, there, 0.0)
        sigmoid += _found(at, 8, n_pieces, there, 0.0)
        root += _found(at, 9, n_pieces, there, 0.0)
        log += _found(at, 10, n_pieces, there, 0.0)
        log_abs += _found(at, 11, n_pieces, there, 0.0)
        # There are no more stripes than pieces.
        logs += _found(lse + first_stripe + piece, 0, 0, piece < n_stripes, 0.0)
    n, mean, relu, own, between, exp, invert, sigmoid, root, log, log_abs, low, high = tl.reduce(
        (n, mean, relu, own, between, exp, invert, sigmoid, root, log, log_abs, low, high),
        0, _join,
    )  # fmt: skip
    tl.store(totals, n)
    tl.store(totals + 1, axis.to(tl.float64))
    tl.store(totals + 2, low)
    tl.store(totals + 3, high)
    tl.store(totals + 4, first_mean + mean / n)
    tl.store(totals + 5, own + tl.maximum(between - mean * mean / n, 0.0))
    tl.store(totals + 6, first_relu + relu / n)
    tl.store(totals + 7, exp)
    tl.store(totals + 8, invert)
    tl.store(totals + 9, sigmoid)
    tl.store(totals + 10, root)
    tl.store(totals + 11, log)
    tl.store(totals + 12, log_abs)
    tl.store(totals + 13, tl.sum(logs, axis=0) / n_columns)


@triton.jit
def join_columns(sums, highest, n_parts, n_columns, left, right, WIDTH: tl.constexpr):
    """The sum over columns of log sum e^x, from the sums that the column's parts have."""
    part = tl.arange(0, PARTS)[:, None]
    at = left + tl.arange(0, WIDTH)
    exists = at < right
    top = tl.full([WIDTH], -INFINITY, tl.float32)
    powers = tl.zeros([WIDTH], tl.float32)
    for start in range(0, n_parts, PARTS):
        there = (start + part < n_parts) & exists[None, :]
        where = (start + part) * n_columns + at[None, :]
        found = tl.load(sums + where, mask=there, other=0.0, cache_modifier=".cg")
        shift = tl.load(highest + where, mask=there, other=-INFINITY, cache_modifier=".cg")
        rising = tl.maximum(top, tl.max(shift, axis=0))
        base = tl.where(exists, rising, 0.0)
        powers = powers * tl.exp(top - base)
        powers += tl.sum(found * tl.exp(shift - base[None, :]), axis=0)
        top = rising
    logs = tl.log(tl.where(exists, powers, 1.0)).to(tl.float64)
    return tl.sum(logs + tl.where(exists, top, 0.0).to(tl.float64), axis=0)
