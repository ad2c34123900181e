"""What the fused kernel does with a piece that float32 cannot sum pair by pair.

Each element for itself, what is large in float64, exponentials below the highest of their
column: right for every number, at some ten times the cost.
"""

import triton
import triton.language as tl

from lmscout.statistics.fused_terms import EPS, INFINITY, grouped, right_edge, whole


@triton.jit
def walk_carefully(
    base, top, bottom, left, right, n, n_columns, row_stride, column_stride,
    normalised, n_parts, parts_sum, parts_highest,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, VECTOR: tl.constexpr, ADJACENT: tl.constexpr,
):  # fmt: skip
    """The sums of a piece that may hold any number, with what is large in float64."""
    row = tl.arange(0, ROWS)[:, None]
    place = tl.arange(0, GROUPS * VECTOR)[None, :]
    column_place = tl.arange(0, GROUPS)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    centre = tl.load(base + top * row_stride + left * column_stride).to(tl.float64)
    zero = tl.zeros([ROWS, GROUPS], tl.float64)
    total, square, invert, relu = zero, zero, zero, zero
    sigmoid, root, log, log_abs = zero, zero, zero, zero
    low = tl.full([ROWS, GROUPS], INFINITY, tl.float32)
    high = tl.full([ROWS, GROUPS], -INFINITY, tl.float32)
    bad = tl.zeros([ROWS, GROUPS], tl.int32)
    exp = tl.full([], 0.0, tl.float64)
    log_sum_exp = tl.full([], 0.0, tl.float64)
    for start in range(left, right, GROUPS * VECTOR):
        highest = tl.full([ROWS, GROUPS, VECTOR], -INFINITY, tl.float32)
        powers = tl.zeros([ROWS, GROUPS, VECTOR], tl.float32)
        column = start + place
        if ADJACENT:
            column = tl.max_contiguous(tl.multiple_of(column, [1, VECTOR]), [1, GROUPS * VECTOR])
        for first in range(top, bottom, ROWS):
            at = first + row
            counts = column.to(tl.int32) < right_edge(at, bottom, right, n, n_columns)
            x = tl.load(base + at * row_stride + column * column_stride, mask=counts, other=0.0)
            x = grouped(x, GROUPS, VECTOR)
            counts = tl.reshape(counts, [ROWS, GROUPS, VECTOR])
            size = tl.abs(x)
            finite = counts & (size < INFINITY)
            bad += tl.sum(counts.to(tl.int32) - finite.to(tl.int32), axis=2)
            x = tl.where(finite, x, 0.0)
            size = tl.where(finite, size, 0.0)
            wide = x.to(tl.float64)
            from_centre = tl.where(finite, wide - centre, 0.0)
            total += tl.sum(from_centre, axis=2)
            square += tl.sum(from_centre * from_centre, axis=2)
            low = tl.minimum(low, tl.min(tl.where(finite, x, INFINITY), axis=2))
            high = tl.maximum(high, tl.max(tl.where(finite, x, -INFINITY), axis=2))
            positive = x > 0.0
            relu += tl.sum(tl.where(positive, wide, 0.0), axis=2)
            root += tl.sum(tl.sqrt_rn(tl.where(positive, x, 0.0)).to(tl.float64), axis=2)
            log_size = tl.log(tl.where(size > 0.0, size, 1.0)).to(tl.float64)
            log_abs += tl.sum(log_size, axis=2)
            log += tl.sum(tl.where(positive, log_size, 0.0), axis=2)
            decay = tl.exp(-size)
            one_side = tl.where(x >= 0.0, 1.0, decay) / (1.0 + decay)
            sigmoid += tl.sum(tl.where(finite, one_side, 0.0).to(tl.float64), axis=2)
            shifted = x + EPS
            defined = finite & (shifted != 0.0)
            inverse = 1.0 / tl.where(defined, shifted, 1.0).to(tl.float64)
            invert += tl.sum(tl.where(defined, inverse, 0.0), axis=2)
            rising = tl.maximum(highest, tl.where(finite, x, -INFINITY))
            shift = tl.where(rising == -INFINITY, 0.0, rising)
            power = tl.where(finite, tl.exp(tl.where(finite, x - shift, 0.0)), 0.0)
            powers = powers * tl.exp(highest - shift) + power
            highest = rising
        top_of_column = tl.max(highest, axis=0)
        shift = tl.where(top_of_column == -INFINITY, 0.0, top_of_column)
        powers = tl.sum(powers * tl.exp(highest - shift[None, :, :]), axis=0)
        exists = (start + column_place < right) & (powers > 0.0)
        wide = shift.to(tl.float64)
        each = tl.where(exists, tl.exp(wide) * powers.to(tl.float64), 0.0)
        exp += tl.sum(tl.sum(each, axis=1), axis=0)
        if n_parts == 1:
            logs = tl.log(tl.where(exists, powers, 1.0)).to(tl.float64) + wide
            log_sum_exp += tl.sum(tl.sum(tl.where(exists, logs, 0.0), axis=1), axis=0)
        elif normalised != 0:
            tl.store(parts_sum + start + column_place, powers, mask=exists)
            tl.store(parts_highest + start + column_place, shift, mask=exists)
    n_bad = tl.sum(tl.sum(bad, axis=1), axis=0)
    return (
        centre, whole(total), whole(square), tl.min(tl.min(low, axis=1), axis=0),
        tl.max(tl.max(high, axis=1), axis=0), whole(relu), exp, whole(invert),
        whole(sigmoid), whole(root), whole(log), whole(log_abs), log_sum_exp, n_bad,
    )  # fmt: skip
