"""The Triton kernel that takes all sums behind the twenty means from one read of a tensor.

A program walks a piece of a matrix, four elements of a column at a time, in float32 with a
register a sum, and joins what it found in float64.  Where a piece turns out to hold what
float32 cannot sum (see `is_ordinary`), the program reads it once more, carefully.  The last
piece of a column adds up the column's exponentials, the last of a tensor joins its pieces,
always in one order, so that one launch does for any number of tensors and its result is the
same each time.

`fused_reductions` cuts tensors into pieces, and says what an element costs.
"""

import torch
import triton
import triton.language as tl

from lmscout.statistics.fused_careful import walk_carefully
from lmscout.statistics.fused_joins import join_columns, join_pieces
from lmscout.statistics.fused_terms import (
    INFINITY,
    LIFT,
    LN_2,
    add_quads,
    is_ordinary,
    join_walked,
    log2,
    right_edge,
)

DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}

FIELDS: tl.constexpr = tl.constexpr(16)  # of a tensor's row in the table
TOTALS: tl.constexpr = tl.constexpr(14)  # that a tensor ends with, as in `totals.TOTALS`


@triton.jit
def _load_quads(pointers, row_stride, ROWS: tl.constexpr):
    """Four tiles, one below the other."""
    down = ROWS * row_stride
    return (
        tl.load(pointers),
        tl.load(pointers + down),
        tl.load(pointers + 2 * down),
        tl.load(pointers + 3 * down),
    )


@triton.jit
def _load_some(
    base, row, column, bottom, right, n, n_columns, row_stride, column_stride,
    GROUPS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """A tile at an edge, and which of its numbers count."""
    counts = column.to(tl.int32) < right_edge(row, bottom, right, n, n_columns)
    x = tl.load(base + row * row_stride + column * column_stride, mask=counts, other=0.0)
    ROWS: tl.constexpr = row.shape[0]
    shape: tl.constexpr = [ROWS, GROUPS, VECTOR]
    return tl.reshape(x, shape), tl.reshape(counts, shape)


@triton.jit(do_not_specialize=["n_tensors", "n_pieces", "n_tickets"])
def walk(
    table, sums, parts_sum, parts_highest, lse, tickets, totals, n_tensors, n_pieces, n_tickets,
    DTYPE: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, VECTOR: tl.constexpr,
    TENSORS: tl.constexpr, ADJACENT: tl.constexpr, FAST: tl.constexpr,
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
        ROWS: of a tile, [ROWS, GROUPS, VECTOR]; four tiles, one below the other, are a step.
        GROUPS: of a tile.
        VECTOR: elements that a thread loads at once.
        TENSORS: a power of two, at least n_tensors.
        ADJACENT: whether columns are, and a row's address is a multiple of VECTOR elements.
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
    if ADJACENT:
        base = tl.multiple_of(base, VECTOR * (DTYPE.primitive_bitwidth // 8))
        row_stride = tl.multiple_of(row_stride, VECTOR)
        column_stride = 1
    else:
        column_stride = tl.load(entry + 4)
    n, first = tl.load(entry + 5), tl.load(entry + 6).to(tl.int32)
    count, n_parts = tl.load(entry + 7).to(tl.int32), tl.load(entry + 8).to(tl.int32)
    height, width = tl.load(entry + 9), tl.load(entry + 10)
    parts_at, axis = tl.load(entry + 11), tl.load(entry + 12)
    first_stripe, n_stripes = tl.load(entry + 13), tl.load(entry + 14).to(tl.int32)
    normalised = (axis > 1).to(tl.int32)

    local = pid - first
    stripe, part = local // n_parts, local % n_parts  # of 32 bits: long division is slow
    top, left = part * height, stripe * width
    bottom, right = tl.minimum(top + height, n_rows), tl.minimum(left + width, n_columns)
    my_sum = parts_sum + parts_at + part * n_columns
    my_highest = parts_highest + parts_at + part * n_columns

    WIDTH: tl.constexpr = GROUPS * VECTOR
    STEP: tl.constexpr = 4 * ROWS
    PLAIN: tl.constexpr = DTYPE if FAST else tl.float32  # what extremes are kept in
    row = tl.arange(0, ROWS)[:, None]
    place = tl.arange(0, WIDTH)[None, :]
    column_place = tl.arange(0, GROUPS)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    # Rows from which nothing sticks out: a matrix made of a vector has a last one that is short.
    whole_rows = tl.maximum(tl.minimum(bottom, n // n_columns) - top, 0) // STEP * STEP
    zero = tl.zeros([ROWS, GROUPS], tl.float32)
    total, square, size, invert = zero, zero, zero, zero
    sigmoid, root, log, log_abs = zero, zero, zero, zero
    low = tl.full([ROWS, GROUPS, VECTOR], INFINITY, PLAIN)
    high = tl.full([ROWS, GROUPS, VECTOR], -INFINITY, PLAIN)
    exp = tl.zeros([ROWS, GROUPS], tl.float64)
    lse_sums = tl.zeros([GROUPS], tl.float64)
    steps = 0
    for start in range(left, right, WIDTH):
        powers = tl.zeros([ROWS, GROUPS, VECTOR], tl.float32)
        column = start + place
        if ADJACENT:  # what the compiler cannot see: a thread's elements are one load
            column = tl.max_contiguous(tl.multiple_of(column, [1, VECTOR]), [1, WIDTH])
        middle = top + tl.where(start + WIDTH <= right, whole_rows, 0)
        a = base + (top + row) * row_stride + column * column_stride
        steps += ((bottom - top + STEP - 1) // STEP).to(tl.int32)
        for _ in range(top, middle, STEP):
            x, y, z, w = _load_quads(a, row_stride, ROWS)
            a += STEP * row_stride
            (total, square, size, invert, sigmoid, root, log, log_abs, low, high, powers) = (
                add_quads(
                    total, square, size, invert, sigmoid, root, log, log_abs, low, high, powers,
                    tl.reshape(x, [ROWS, GROUPS, VECTOR]), tl.reshape(y, [ROWS, GROUPS, VECTOR]),
                    tl.reshape(z, [ROWS, GROUPS, VECTOR]), tl.reshape(w, [ROWS, GROUPS, VECTOR]),
                    row, row, row, row, False, FAST,
                )
            )  # fmt: skip
        for at in range(middle, bottom, STEP):
            x, in_x = _load_some(base, at + row, column, bottom, right, n, n_columns,
                                 row_stride, column_stride, GROUPS, VECTOR)  # fmt: skip
            y, in_y = _load_some(base, at + ROWS + row, column, bottom, right, n, n_columns,
                                 row_stride, column_stride, GROUPS, VECTOR)  # fmt: skip
            z, in_z = _load_some(base, at + 2 * ROWS + row, column, bottom, right, n, n_columns,
                                 row_stride, column_stride, GROUPS, VECTOR)  # fmt: skip
            w, in_w = _load_some(base, at + 3 * ROWS + row, column, bottom, right, n, n_columns,
                                 row_stride, column_stride, GROUPS, VECTOR)  # fmt: skip
            (total, square, size, invert, sigmoid, root, log, log_abs, low, high, powers) = (
                add_quads(
                    total, square, size, invert, sigmoid, root, log, log_abs, low, high, powers,
                    x, y, z, w, in_x, in_y, in_z, in_w, True, FAST,
                )
            )  # fmt: skip
        exp += tl.sum(powers, axis=2).to(tl.float64)
        if normalised != 0:
            column_sums = tl.sum(powers, axis=0)
            here = start + column_place < right
            if n_parts == 1:
                logs = log2(tl.where(here, column_sums, 1.0), FAST)
                lse_sums += tl.sum(logs, axis=1).to(tl.float64)
            else:
                tl.store(my_sum + start + column_place, column_sums, mask=here)
                tl.store(my_highest + start + column_place, column_sums * 0.0, mask=here)

    # What is in this piece: a short last row may leave less than height times width.
    here = (bottom - top) * (right - left)
    here -= tl.where(bottom * n_columns > n, bottom * n_columns - n, 0)
    n_here = here.to(tl.float64)
    (
        p_total, p_square, p_size, p_invert, p_sigmoid, p_root, p_log, p_log_abs, exp_sum,
        p_low, p_high,
    ) = tl.reduce(
        (
            tl.ravel(total.to(tl.float64)), tl.ravel(square.to(tl.float64)),
            tl.ravel(size.to(tl.float64)), tl.ravel(invert.to(tl.float64)),
            tl.ravel(sigmoid.to(tl.float64)), tl.ravel(root.to(tl.float64)),
            tl.ravel(log.to(tl.float64)), tl.ravel(log_abs.to(tl.float64)), tl.ravel(exp),
            tl.ravel(tl.min(low.to(tl.float32), axis=2)),
            tl.ravel(tl.max(high.to(tl.float32), axis=2)),
        ),
        0, join_walked,
    )  # fmt: skip
    lse_sum = tl.sum(lse_sums, axis=0) * LN_2
    lift = steps.to(tl.float64) * (LIFT * ROWS * WIDTH)
    p_log, p_log_abs = (p_log - lift) * LN_2, (p_log_abs - lift) * LN_2
    # Exactly 0 where nothing is positive: the two are the same sums with the other sign.
    p_relu = 0.5 * (p_total + p_size)
    p_mean = p_total / n_here
    p_deviation = tl.maximum(p_square - p_total * p_total / n_here, 0.0)
    n_bad = 0
    if is_ordinary(n_here, p_total, p_square, p_low, p_high, p_invert, p_log, p_log_abs) == 0:
        tl.debug_barrier()  # other threads may write the parts that these have written
        (
            centre, p_total, p_square, p_low, p_high, p_relu, exp_sum, p_invert, p_sigmoid,
            p_root, p_log, p_log_abs, lse_sum, n_bad,
        ) = walk_carefully(
            base, top, bottom, left, right, n, n_columns, row_stride, column_stride,
            normalised, n_parts, my_sum, my_highest, ROWS, GROUPS, VECTOR, ADJACENT,
        )  # fmt: skip
        p_mean = centre + p_total / n_here
        p_deviation = tl.maximum(p_square - p_total * p_total / n_here, 0.0)
    # Where nothing is negative the two are one sum, and have to be one number.
    p_relu = tl.where(p_low >= 0.0, p_mean, p_relu / n_here)
    # A tensor that is not finite has no value: this carries it through every later sum.
    n_here = tl.where(n_bad == 0, n_here, float("nan"))

    mine = sums + pid
    tl.store(mine, n_here)
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
                lse_sum = join_columns(
                    parts_sum + parts_at, parts_highest + parts_at, n_parts, n_columns,
                    left, right, WIDTH,
                )  # fmt: skip
            tl.store(lse + first_stripe + stripe, lse_sum)

    tl.debug_barrier()
    ticket = tickets + n_tickets + tensor
    if tl.atomic_add(ticket, 1, sem="acq_rel") == count - 1:
        tl.store(ticket, 0)
        join_pieces(
            sums, totals + tensor * TOTALS, lse, first, count, n_pieces,
            first_stripe, n_stripes, n_columns, axis,
        )  # fmt: skip
