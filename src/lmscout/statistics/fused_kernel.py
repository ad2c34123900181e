"""The Triton kernel that takes all sums behind the twenty means from one read of a tensor.

A program walks a piece of a matrix, pairs of elements at a time, in float32 with a register a
sum, and joins what it found in float64.  Where a piece turns out to hold what float32 cannot
sum (see `is_ordinary`), the program reads it once more, carefully.  The last piece of a
column adds up the column's exponentials, the last of a tensor joins its pieces, always in one
order, so that one launch does for any number of tensors and its result is the same each time.

`fused_reductions` cuts tensors into pieces, and says what an element costs.
"""

import torch
import triton
import triton.language as tl

from lmscout.statistics.fused_careful import walk_carefully
from lmscout.statistics.fused_terms import (
    INFINITY,
    LN_2,
    add_pair,
    grouped,
    is_ordinary,
    log2,
    whole,
)

DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}

FIELDS: tl.constexpr = tl.constexpr(16)  # of a tensor's row in the table
CHUNK: tl.constexpr = tl.constexpr(512)  # pieces that are joined at a time
TOTALS: tl.constexpr = tl.constexpr(14)  # that a tensor ends with, as in `reductions.TOTALS`


@triton.jit
def _join_pieces(
    sums, totals, lse, first, count, n_pieces, first_stripe, n_stripes, n_columns, axis,
):  # fmt: skip
    """The totals of a tensor from what its pieces found, in the order of the pieces."""
    # Means are joined as differences from the first, so that those that agree stay as they are.
    first_mean = tl.load(sums + first + n_pieces, cache_modifier=".cg")
    first_relu = tl.load(sums + first + 5 * n_pieces, cache_modifier=".cg")
    zero = tl.zeros([CHUNK], tl.float64)
    n, mean, relu, deviation = zero, zero, zero, zero
    low, high = zero + INFINITY, zero - INFINITY
    for start in range(0, count, CHUNK):
        piece = start + tl.arange(0, CHUNK)
        there = piece < count
        at = sums + first + piece
        size = tl.load(at, mask=there, other=0.0, cache_modifier=".cg")
        found = tl.load(at + n_pieces, mask=there, other=first_mean, cache_modifier=".cg")
        n += size
        mean += size * (found - first_mean)
        found = tl.load(at + 5 * n_pieces, mask=there, other=first_relu, cache_modifier=".cg")
        relu += size * (found - first_relu)
        found = tl.load(at + 3 * n_pieces, mask=there, other=INFINITY, cache_modifier=".cg")
        low = tl.minimum(low, found)
        found = tl.load(at + 4 * n_pieces, mask=there, other=-INFINITY, cache_modifier=".cg")
        high = tl.maximum(high, found)
    n_all = tl.sum(n, axis=0)
    mean_all = first_mean + tl.sum(mean, axis=0) / n_all
    for start in range(0, count, CHUNK):
        piece = start + tl.arange(0, CHUNK)
        there = piece < count
        at = sums + first + piece
        size = tl.load(at, mask=there, other=0.0, cache_modifier=".cg")
        found = tl.load(at + n_pieces, mask=there, other=mean_all, cache_modifier=".cg")
        deviation += size * (found - mean_all) * (found - mean_all)
        deviation += tl.load(at + 2 * n_pieces, mask=there, other=0.0, cache_modifier=".cg")
    tl.store(totals, n_all)
    tl.store(totals + 1, axis.to(tl.float64))
    tl.store(totals + 2, tl.min(low, axis=0))
    tl.store(totals + 3, tl.max(high, axis=0))
    tl.store(totals + 4, mean_all)
    tl.store(totals + 5, tl.sum(deviation, axis=0))
    tl.store(totals + 6, first_relu + tl.sum(relu, axis=0) / n_all)
    for field in tl.static_range(6, 12):
        found = _sum_of(sums + first + field * n_pieces, count)
        tl.store(totals + field + 1, found)
    tl.store(totals + 13, _sum_of(lse + first_stripe, n_stripes) / n_columns)


@triton.jit
def _sum_of(numbers, count):
    total = tl.zeros([CHUNK], tl.float64)
    for start in range(0, count, CHUNK):
        at = start + tl.arange(0, CHUNK)
        total += tl.load(numbers + at, mask=at < count, other=0.0, cache_modifier=".cg")
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=["n_tensors", "n_pieces", "n_tickets"])
def walk(
    table, sums, parts_sum, parts_highest, lse, tickets, totals, n_tensors, n_pieces, n_tickets,
    DTYPE: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, VECTOR: tl.constexpr,
    TENSORS: tl.constexpr, ALIGNED: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """All totals of all tensors; a program a piece.

    Args:
        table: [tensors, FIELDS] int64, see `fused_reductions`.
        sums: [12, pieces] float64, what each piece found; written and read here.
        parts_sum: [*] float32, each part of a column's sum of e^(x - highest).
        parts_highest: [*] float32.
        lse: [stripes] float64, logarithms of columns' sums.
        tickets: [stripes + tensors] int32, zeros, and left so.
        totals: [tensors, TOTALS] float64: the result.
        n_tensors: rows of the table.
        n_pieces: pieces in all.
        n_tickets: stripes in all.
        DTYPE: of the tensors.
        ROWS: of a tile, [ROWS, GROUPS, VECTOR]; a stripe is two tiles wide.
        GROUPS: of a tile.
        VECTOR: elements that a thread loads at once.
        TENSORS: a power of two, at least n_tensors.
        ALIGNED: whether addresses and strides are multiples of 16 bytes, columns adjacent.
        FAST: whether the device's own approximations take the place of the portable functions.
    """
    pid = tl.program_id(0)
    every = tl.arange(0, TENSORS)
    firsts = tl.load(table + every * FIELDS + 6, mask=every < n_tensors, other=1 << 40)
    tensor = tl.sum((firsts <= pid).to(tl.int32), axis=0) - 1
    entry = table + tensor * FIELDS
    base = tl.load(entry).to(tl.pointer_type(DTYPE))
    n_rows, n_columns = tl.load(entry + 1), tl.load(entry + 2)
    row_stride = tl.load(entry + 3)
    if ALIGNED:
        base = tl.multiple_of(base, 16)
        row_stride = tl.multiple_of(row_stride, 16)
        column_stride = 1
    else:
        column_stride = tl.load(entry + 4)
    n, first, count = tl.load(entry + 5), tl.load(entry + 6), tl.load(entry + 7)
    n_parts, height, width = tl.load(entry + 8), tl.load(entry + 9), tl.load(entry + 10)
    parts_at, axis = tl.load(entry + 11), tl.load(entry + 12)
    first_stripe, n_stripes = tl.load(entry + 13), tl.load(entry + 14)
    normalised = (axis > 1).to(tl.int32)

    local = pid - first
    stripe, part = local // n_parts, local % n_parts
    top, left = part * height, stripe * width
    bottom, right = tl.minimum(top + height, n_rows), tl.minimum(left + width, n_columns)
    my_sum = parts_sum + parts_at + part * n_columns
    my_highest = parts_highest + parts_at + part * n_columns

    HALF: tl.constexpr = GROUPS * VECTOR
    row = tl.arange(0, ROWS)[:, None]
    place = tl.arange(0, HALF)[None, :]
    column_place = tl.arange(0, GROUPS)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    # Rows from which nothing sticks out: a matrix made of a vector has a last one that is short.
    whole_rows = tl.maximum(tl.minimum(bottom, n // n_columns) - top, 0) // ROWS * ROWS
    zero = tl.zeros([ROWS, GROUPS], tl.float32)
    total, square, invert, sigmoid = zero, zero, zero, zero
    relu, root, log, log_abs = zero, zero, zero, zero
    low, high = zero + INFINITY, zero - INFINITY
    exp_sum = tl.full([], 0.0, tl.float64)
    lse_sum = tl.full([], 0.0, tl.float64)
    for start in range(left, right, 2 * HALF):
        exp_x = tl.zeros([ROWS, GROUPS, VECTOR], tl.float32)
        exp_y = tl.zeros([ROWS, GROUPS, VECTOR], tl.float32)
        column = start + place
        if ALIGNED:  # what the compiler cannot see: a thread's elements are one load
            column = tl.max_contiguous(tl.multiple_of(column, [1, VECTOR]), [1, HALF])
        middle = top + tl.where(start + 2 * HALF <= right, whole_rows, 0)
        pointers = base + (top + row) * row_stride + column * column_stride
        for _ in range(top, middle, ROWS):
            x = tl.load(pointers)
            y = tl.load(pointers + HALF * column_stride)
            pointers += ROWS * row_stride
            (total, square, invert, sigmoid, relu, root, log, log_abs, low, high, exp_x, exp_y) = (
                add_pair(
                    total, square, invert, sigmoid, relu, root, log, log_abs, low, high,
                    exp_x, exp_y, grouped(x, GROUPS, VECTOR), grouped(y, GROUPS, VECTOR),
                    x, y, False, FAST,
                )
            )  # fmt: skip
        for at in range(middle, bottom, ROWS):
            counts = (at + row < bottom) & (column < right)
            counts = counts & ((at + row) * n_columns + column < n)
            beyond = (at + row < bottom) & (column + HALF < right)
            beyond = beyond & ((at + row) * n_columns + column + HALF < n)
            pointers = base + (at + row) * row_stride + column * column_stride
            x = tl.load(pointers, mask=counts, other=0.0)
            y = tl.load(pointers + HALF * column_stride, mask=beyond, other=0.0)
            (total, square, invert, sigmoid, relu, root, log, log_abs, low, high, exp_x, exp_y) = (
                add_pair(
                    total, square, invert, sigmoid, relu, root, log, log_abs, low, high,
                    exp_x, exp_y, grouped(x, GROUPS, VECTOR), grouped(y, GROUPS, VECTOR),
                    tl.reshape(counts, [ROWS, GROUPS, VECTOR]),
                    tl.reshape(beyond, [ROWS, GROUPS, VECTOR]), True, FAST,
                )
            )  # fmt: skip
        for side in tl.static_range(2):
            powers = tl.sum(exp_x, axis=0) if side == 0 else tl.sum(exp_y, axis=0)
            at_column = start + side * HALF + column_place
            wide = powers.to(tl.float64)
            exp_sum += tl.sum(tl.sum(wide, axis=1), axis=0)
            if n_parts == 1:
                logs = log2(tl.where(at_column < right, powers, 1.0), FAST).to(tl.float64)
                lse_sum += tl.sum(tl.sum(logs, axis=1), axis=0) * LN_2
            elif normalised != 0:
                tl.store(my_sum + at_column, powers, mask=at_column < right)
                tl.store(my_highest + at_column, powers * 0.0, mask=at_column < right)

    # What is in this piece: a short last row may leave less than height times width.
    here = (bottom - top) * (right - left)
    here -= tl.where(bottom * n_columns > n, bottom * n_columns - n, 0)
    size = here.to(tl.float64)
    p_total, p_square = whole(total), whole(square)
    p_low = tl.min(tl.min(low, axis=1), axis=0)
    p_high = tl.max(tl.max(high, axis=1), axis=0)
    p_relu, p_invert, p_sigmoid = whole(relu), whole(invert), whole(sigmoid)
    p_root, p_log, p_log_abs = whole(root), whole(log) * LN_2, whole(log_abs) * LN_2
    p_mean = p_total / size
    p_deviation = tl.maximum(p_square - p_total * p_total / size, 0.0)
    n_bad = 0
    if is_ordinary(size, p_total, p_square, p_low, p_high, p_invert, p_log_abs) == 0:
        tl.debug_barrier()  # other threads may write the parts that these have written
        (
            centre, p_total, p_square, p_low, p_high, p_relu, exp_sum, p_invert, p_sigmoid,
            p_root, p_log, p_log_abs, lse_sum, n_bad,
        ) = walk_carefully(
            base, top, bottom, left, right, n, n_columns, row_stride, column_stride,
            normalised, n_parts, my_sum, my_highest, ROWS, GROUPS, VECTOR, ALIGNED,
        )  # fmt: skip
        p_mean = centre + p_total / size
        p_deviation = tl.maximum(p_square - p_total * p_total / size, 0.0)
    # Where nothing is negative the two are one sum, and have to be one number.
    p_relu = tl.where(p_low >= 0.0, p_mean, p_relu / size)
    # A tensor that is not finite has no value: this carries it through every later sum.
    size = tl.where(n_bad == 0, size, float("nan"))

    mine = sums + pid
    tl.store(mine, size)
    tl.store(mine + n_pieces, p_mean)
    tl.store(mine + 2 * n_pieces, p_deviation)
    tl.store(mine + 3 * n_pieces, p_low.to(tl.float64))
    tl.store(mine + 4 * n_pieces, p_high.to(tl.float64))
    tl.store(mine + 5 * n_pieces, p_relu)
    tl.store(mine + 6 * n_pieces, exp_sum)
    tl.store(mine + 7 * n_pieces, p_invert)
    tl.store(mine + 8 * n_pieces, p_sigmoid)
    tl.store(mine + 9 * n_pieces, p_root)
    tl.store(mine + 10 * n_pieces, p_log)
    tl.store(mine + 11 * n_pieces, p_log_abs)

    if n_parts == 1:
        tl.store(lse + first_stripe + stripe, lse_sum)
    else:
        tl.debug_barrier()  # all threads of a program have written before its ticket is drawn
        ticket = tickets + first_stripe + stripe
        if tl.atomic_add(ticket, 1, sem="acq_rel") == n_parts - 1:
            tl.store(ticket, 0)
            lse_sum = tl.full([], 0.0, tl.float64)
            if normalised != 0:
                for side in tl.static_range(2):
                    at = left + side * HALF + column_place
                    exists = at < right
                    highest = tl.full([GROUPS, VECTOR], -INFINITY, tl.float32)
                    for each in range(n_parts):
                        found = tl.load(
                            parts_highest + parts_at + each * n_columns + at,
                            mask=exists, other=0.0, cache_modifier=".cg",
                        )  # fmt: skip
                        highest = tl.maximum(highest, found)
                    powers = tl.zeros([GROUPS, VECTOR], tl.float32)
                    for each in range(n_parts):
                        where = parts_at + each * n_columns + at
                        found = tl.load(
                            parts_sum + where, mask=exists, other=1.0, cache_modifier=".cg"
                        )
                        shift = tl.load(
                            parts_highest + where, mask=exists, other=0.0, cache_modifier=".cg"
                        )
                        powers += found * tl.exp(shift - highest)
                    logs = tl.log(powers).to(tl.float64) + highest.to(tl.float64)
                    lse_sum += tl.sum(tl.sum(tl.where(exists, logs, 0.0), axis=1), axis=0)
            tl.store(lse + first_stripe + stripe, lse_sum)

    tl.debug_barrier()
    ticket = tickets + n_tickets + tensor
    if tl.atomic_add(ticket, 1, sem="acq_rel") == count - 1:
        tl.store(ticket, 0)
        _join_pieces(
            sums, totals + tensor * TOTALS, lse, first, count, n_pieces,
            first_stripe, n_stripes, n_columns, axis,
        )  # fmt: skip
