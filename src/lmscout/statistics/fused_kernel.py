"""The Triton kernel that takes all sums behind the twenty means from one read of a tensor.

A program walks a piece of a matrix, in float32, as fast as the piece allows: a look ahead says
whether its numbers are small (`fused_stripes`).  Where they turn out not to be (`is_small`), the
program reads the piece once more without that assumption, and where it holds what float32 cannot
sum (`is_ordinary`), carefully.  The last piece of a column adds up the column's exponentials,
the last of a tensor joins its pieces, always in one order, so that one launch does for any
number of tensors and its result is the same each time.

`fused_reductions` cuts tensors into pieces, and says what an element costs.
"""

import torch
import triton
import triton.language as tl

from lmscout.statistics.fused_ahead import ring_of
from lmscout.statistics.fused_careful import walk_carefully
from lmscout.statistics.fused_joins import join_columns, join_pieces
from lmscout.statistics.fused_small import is_small, looks_small
from lmscout.statistics.fused_stripes import begin_stripe, look_ahead, walk_stripes, whole_rows
from lmscout.statistics.fused_terms import is_ordinary

DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}

FIELDS: tl.constexpr = tl.constexpr(16)  # of a tensor's row in the table
TOTALS: tl.constexpr = tl.constexpr(14)  # that a tensor ends with, as in `totals.TOTALS`


@triton.jit(do_not_specialize=["n_tensors", "n_pieces", "n_tickets"])
def walk(
    table, sums, parts_sum, parts_highest, lse, tickets, totals, n_tensors, n_pieces, n_tickets,
    DTYPE: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, VECTOR: tl.constexpr,
    TENSORS: tl.constexpr, ADJACENT: tl.constexpr, FAST: tl.constexpr, SMALL: tl.constexpr,
    SLOTS: tl.constexpr,
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
        FAST: 0 for portable functions, else the compute capability (90 is Hopper) whose own
            instructions take their place.
        SMALL: whether numbers that look small are added as such.
        SLOTS: steps that have a place in shared memory, of which all but one are on their way
            while one is added; 0 where none can be.
    """
    pid = tl.program_id(0)
    # The whole table at once, so that no row has to be waited for when its place is known.
    every, field = tl.arange(0, TENSORS)[:, None], tl.arange(0, FIELDS)[None, :]
    cells = tl.load(table + every * FIELDS + field)
    begun = (field == 6) & (every < n_tensors) & (cells <= pid)
    tensor = tl.sum(tl.sum(begun.to(tl.int32), axis=1), axis=0) - 1
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

    # What is in this piece: a short last row may leave less than height times width.
    here = (bottom - top) * (right - left)
    here -= tl.where(bottom * n_columns > n, bottom * n_columns - n, 0)
    n_here = here.to(tl.float64)
    # What is looked at ahead, and the first steps, are on their way at once.
    SIZE: tl.constexpr = VECTOR * (DTYPE.primitive_bitwidth // 8)
    rows = whole_rows(top, bottom, n, n_rows, n_columns, 4 * ROWS)
    ring, source, like = 0, 0, 0.0
    small, lift = 0, 1.0
    if SMALL or SLOTS:
        a, b, c, d = look_ahead(
            base, top, left, right, rows, row_stride, column_stride, ROWS, GROUPS, VECTOR, ADJACENT
        )
        if SLOTS:
            ring = ring_of(SLOTS, SIZE, ROWS * GROUPS)
            like = tl.sum(tl.reshape(a, [ROWS, GROUPS, VECTOR]), axis=2)
            source = begin_stripe(
                base, top, left, right, rows, row_stride, column_stride, ring, like,
                ROWS, GROUPS, VECTOR, SLOTS,
            )  # fmt: skip
        if SMALL:
            small, lift = looks_small(a, b, c, d)
    # What the loop leaves: it runs once, or once more where small numbers were none.
    nothing = tl.full([], 0.0, tl.float64)
    p_total, p_square, p_size, p_invert, p_sigmoid = nothing, nothing, nothing, nothing, nothing
    p_root, p_log, p_log_abs, exp_sum, lse_sum = nothing, nothing, nothing, nothing, nothing
    p_low, p_high = tl.full([], 0.0, tl.float32), tl.full([], 0.0, tl.float32)
    ordinary, walks = 0, 1
    while walks > 0:
        (
            p_total, p_square, p_fourth, p_size, p_invert, p_sigmoid, p_root, p_log, p_log_abs,
            exp_sum, p_low, p_high, lse_sum,
        ) = walk_stripes(
            base, top, bottom, left, right, rows, n, n_columns, row_stride, column_stride,
            small, lift, normalised, n_parts, my_sum, my_highest, ring, source,
            DTYPE, ROWS, GROUPS, VECTOR, ADJACENT, FAST, SMALL, SLOTS,
        )  # fmt: skip
        bound = tl.maximum(-p_low, p_high)
        ordinary = is_ordinary(n_here, p_total, p_square, bound, p_invert, p_log, p_log_abs).to(
            tl.int32
        )
        walks = 0
        if SMALL:
            if small != 0:
                ordinary = ordinary & is_small(n_here, p_fourth, bound, lift).to(tl.int32)
                walks = 1 - ordinary
            small = 0
            if SLOTS:
                source = begin_stripe(
                    base, top, left, right, rows * walks, row_stride, column_stride, ring, like,
                    ROWS, GROUPS, VECTOR, SLOTS,
                )  # fmt: skip
    # Exactly 0 where nothing is positive, whatever the two sums were rounded to.
    p_relu = tl.where(p_high <= 0.0, 0.0, 0.5 * (p_total + p_size))
    p_mean = p_total / n_here
    p_deviation = tl.maximum(p_square - p_total * p_total / n_here, 0.0)
    n_bad = 0
    if ordinary == 0:
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

    if (n_parts == 1) | (normalised == 0):
        tl.store(lse + first_stripe + stripe, lse_sum)
    else:
        tl.debug_barrier()  # all threads of a program have written before its ticket is drawn
        ticket = tickets + first_stripe + stripe
        if tl.atomic_add(ticket, 1, sem="acq_rel") == n_parts - 1:
            tl.store(ticket, 0)
            lse_sum = join_columns(
                parts_sum + parts_at, parts_highest + parts_at, n_parts, n_columns,
                left, right, GROUPS * VECTOR,
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
