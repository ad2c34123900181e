"""The fused kernel's walk through a piece of ordinary numbers, stripe by stripe.

Four elements of a column at a time, in float32 with a register a sum, which are joined in
float64 at the end.  Numbers that look small are added as powers (`fused_small`), all others,
and edges, with exponentials (`fused_terms`).
"""

import triton
import triton.language as tl

from lmscout.statistics.fused_ahead import begin, follow
from lmscout.statistics.fused_instructions import log2, unknown
from lmscout.statistics.fused_products import LIFT_OF_EIGHTS, LIFT_OF_QUADS
from lmscout.statistics.fused_small import (
    add_small,
    exponentials_of,
    sigmoids_of,
)
from lmscout.statistics.fused_terms import (
    EPS,
    INFINITY,
    LN_2,
    add_quads,
    join_walked,
    right_edge,
)


@triton.jit
def _next_step(
    source, slot, ring, left, down, like, tile, row_stride,
    ROWS: tl.constexpr, SHAPE: tl.constexpr,
    SLOTS: tl.constexpr, SIZE: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """Four tiles, one below the other, and where the next ones are."""
    if SLOTS:
        return follow(source, slot, ring, left, down, like, tile, SLOTS, SIZE, THREADS)
    else:
        below = ROWS * row_stride
        a = tl.reshape(tl.load(source), SHAPE)
        b = tl.reshape(tl.load(source + below), SHAPE)
        c = tl.reshape(tl.load(source + 2 * below), SHAPE)
        d = tl.reshape(tl.load(source + 3 * below), SHAPE)
        return source + 4 * below, slot, a, b, c, d


@triton.jit
def _load_some(
    base, row, column, bottom, right, n, n_columns, row_stride, column_stride,
    SHAPE: tl.constexpr,
):  # fmt: skip
    """A tile at an edge, and which of its numbers count."""
    counts = column.to(tl.int32) < right_edge(row, bottom, right, n, n_columns)
    x = tl.load(base + row * row_stride + column * column_stride, mask=counts, other=0.0)
    return tl.reshape(x, SHAPE), tl.reshape(counts, SHAPE)


@triton.jit
def whole_rows(top, bottom, n, n_rows, n_columns, STEP: tl.constexpr):
    """Whole steps of rows that all count: a matrix made of a vector has a short last row."""
    complete = n_rows - (n_rows * n_columns > n).to(tl.int64)
    return (tl.maximum(tl.minimum(bottom, complete) - top, 0) // STEP * STEP).to(tl.int32)


@triton.jit
def look_ahead(
    base, top, left, right, rows, row_stride, column_stride,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, VECTOR: tl.constexpr, ADJACENT: tl.constexpr,
):  # fmt: skip
    """Four tiles across a piece of as many whole rows."""
    WIDTH: tl.constexpr = GROUPS * VECTOR
    stripes = (right - left) // WIDTH
    there = (rows > 0) & (stripes > 0)
    row = top + tl.arange(0, ROWS)[:, None]
    column = left + tl.arange(0, WIDTH)[None, :]
    if ADJACENT:
        column = tl.max_contiguous(tl.multiple_of(column, [1, VECTOR]), [1, WIDTH])
    at = base + row * row_stride + column * column_stride
    down = rows // 4 * row_stride
    return (
        _load_if(at, there),
        _load_if(at + down + stripes // 4 * WIDTH * column_stride, there),
        _load_if(at + 2 * down + stripes // 2 * WIDTH * column_stride, there),
        _load_if(at + 3 * down + 3 * stripes // 4 * WIDTH * column_stride, there),
    )


@triton.jit
def begin_stripe(
    base, top, start, right, rows, row_stride, column_stride, ring, like,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, VECTOR: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Have the first steps of a stripe copied, if there is one from column `start` on.

    `rows` are whole ones, `ring` and `like` as for `begin`.

    Returns:
        The address of the last row copied.
    """
    SIZE: tl.constexpr = VECTOR * (base.dtype.element_ty.primitive_bitwidth // 8)
    row = top + tl.arange(0, ROWS)[:, None]
    column = start + tl.arange(0, GROUPS)[None, :] * VECTOR
    steps = tl.where(start + GROUPS * VECTOR <= right, rows, 0) // (4 * ROWS)
    return begin(
        base + row * row_stride + column * column_stride, ring, -steps,
        SIZE // VECTOR * ROWS * row_stride, like, SLOTS, SIZE, ROWS * GROUPS,
    )  # fmt: skip


@triton.jit
def _load_if(pointers, there):
    return tl.load(pointers, mask=there, other=0.0).to(tl.float32)


@triton.jit
def walk_stripes(
    base, top, bottom, left, right, rows, n, n_columns, row_stride, column_stride,
    small, lift, normalised, n_parts, parts_sum, parts_highest, ring, source,
    DTYPE: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, VECTOR: tl.constexpr,
    ADJACENT: tl.constexpr, FAST: tl.constexpr, SMALL: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """The sums of a piece: as of small numbers, lifted by `lift`, where `small` is not 0.

    Of x, of x^2, of x^4 as far as they were added as small ones, of |x|, 1 / (x + eps), the
    sigmoid, the root, ln x, ln |x| and e^x; then the lowest and the highest, and the sum over
    columns of ln sum e^x where columns have one part.  `rows` of it are whole ones, and of the
    first stripe steps are on their way to the `ring`, as `begin_stripe` has left them at `source`.
    """
    WIDTH: tl.constexpr = GROUPS * VECTOR
    STEP: tl.constexpr = 4 * ROWS
    SHAPE: tl.constexpr = [ROWS, GROUPS, VECTOR]
    PLAIN: tl.constexpr = DTYPE if FAST else tl.float32  # what extremes are kept in
    row = tl.arange(0, ROWS)[:, None]
    place = tl.arange(0, WIDTH)[None, :]
    column_place = tl.arange(0, GROUPS)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    zero = tl.zeros([ROWS, GROUPS], tl.float32)
    zeros = tl.zeros(SHAPE, tl.float32)
    total, square, fourths, size, invert, sigmoid = zero, zero, zero, zero, zero, zero
    root, log, log_abs = zeros, zeros, zeros
    low = tl.full(SHAPE, INFINITY, PLAIN)
    high = tl.full(SHAPE, -INFINITY, PLAIN)
    exp = tl.zeros([ROWS, GROUPS], tl.float64)
    lse_sums = tl.zeros([GROUPS], tl.float64)
    # What a thread has in a tile, in bytes, and where a step of it is on its way.
    SIZE: tl.constexpr = VECTOR * (DTYPE.primitive_bitwidth // 8)
    THREADS: tl.constexpr = ROWS * GROUPS
    down = ROWS * row_stride * (DTYPE.primitive_bitwidth // 8)
    steps, small_steps = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    for start in range(left, right, WIDTH):
        powers = zeros
        column = start + place
        if ADJACENT:  # what the compiler cannot see: a thread's elements are one load
            column = tl.max_contiguous(tl.multiple_of(column, [1, VECTOR]), [1, WIDTH])
        middle = tl.where(start + WIDTH <= right, rows, 0)
        middle_steps = middle // STEP
        slot = (SLOTS - 1) * (4 * SIZE * THREADS)  # of the ring, that is free
        at = source if SLOTS else base + (top + row) * row_stride + column * column_stride
        if SMALL:
            small_here = middle_steps * small
            first, second, third, fourth, inverse = zeros, zeros, zeros, zeros, zero
            for left_here in range(-small_here, 0):
                at, slot, x, y, z, w = _next_step(
                    at, slot, ring, left_here, down, size, low,
                    row_stride, ROWS, SHAPE, SLOTS, SIZE, THREADS,
                )  # fmt: skip
                (
                    first, second, third, fourth, size, inverse, root, log, log_abs, low, high,
                ) = add_small(
                    first, second, third, fourth, size, inverse, root, log, log_abs, low, high,
                    x, y, z, w, lift, lift * EPS, FAST,
                )  # fmt: skip
            small_steps += small_here
            second = unknown(second, FAST)
            added = (small_here * 4).to(tl.float32)
            powers = exponentials_of(added, first, second, third, fourth)
            sigmoid += tl.sum(sigmoids_of(added, first, third), axis=2)
            total += tl.sum(first, axis=2)
            square += tl.sum(second, axis=2)
            fourths += tl.sum(fourth, axis=2)
            invert += lift * inverse
        else:
            small_here = 0
        for left_here in range(small_here - middle_steps, 0):
            at, slot, x, y, z, w = _next_step(
                at, slot, ring, left_here, down, size, low,
                row_stride, ROWS, SHAPE, SLOTS, SIZE, THREADS,
            )  # fmt: skip
            (total, square, size, invert, sigmoid, root, log, log_abs, low, high, powers) = (
                add_quads(
                    total, square, size, invert, sigmoid, root, log, log_abs, low, high, powers,
                    x, y, z, w, row, row, row, row, False, FAST,
                )
            )  # fmt: skip
        if SLOTS:  # what comes next is under way while the rest of this stripe is done
            source = begin_stripe(
                base, top, start + WIDTH, right, rows, row_stride, column_stride, ring, size,
                ROWS, GROUPS, VECTOR, SLOTS,
            )  # fmt: skip
        for edge in range(top + middle, bottom, STEP):
            x, in_x = _load_some(base, edge + row, column, bottom, right, n, n_columns,
                                 row_stride, column_stride, SHAPE)  # fmt: skip
            y, in_y = _load_some(base, edge + ROWS + row, column, bottom, right, n, n_columns,
                                 row_stride, column_stride, SHAPE)  # fmt: skip
            z, in_z = _load_some(base, edge + 2 * ROWS + row, column, bottom, right, n, n_columns,
                                 row_stride, column_stride, SHAPE)  # fmt: skip
            w, in_w = _load_some(base, edge + 3 * ROWS + row, column, bottom, right, n, n_columns,
                                 row_stride, column_stride, SHAPE)  # fmt: skip
            (total, square, size, invert, sigmoid, root, log, log_abs, low, high, powers) = (
                add_quads(
                    total, square, size, invert, sigmoid, root, log, log_abs, low, high, powers,
                    x, y, z, w, in_x, in_y, in_z, in_w, True, FAST,
                )
            )  # fmt: skip
        steps += ((bottom - top + STEP - 1) // STEP).to(tl.int32)
        exp += tl.sum(powers, axis=2).to(tl.float64)
        if normalised != 0:
            column_sums = tl.sum(powers, axis=0)
            here = start + column_place < right
            if n_parts == 1:
                logs = log2(tl.where(here, column_sums, 1.0), FAST)
                lse_sums += tl.sum(logs, axis=1).to(tl.float64)
            else:
                tl.store(parts_sum + start + column_place, column_sums, mask=here)
                tl.store(parts_highest + start + column_place, column_sums * 0.0, mask=here)

    (
        p_total, p_square, p_fourth, p_size, p_invert, p_sigmoid, p_root, p_log, p_log_abs, p_exp,
        p_low, p_high,
    ) = tl.reduce(
        (
            tl.ravel(total.to(tl.float64)), tl.ravel(square.to(tl.float64)),
            tl.ravel(fourths.to(tl.float64)), tl.ravel(size.to(tl.float64)),
            tl.ravel(invert.to(tl.float64)), tl.ravel(sigmoid.to(tl.float64)),
            tl.ravel(tl.sum(root, axis=2).to(tl.float64)),
            tl.ravel(tl.sum(log, axis=2).to(tl.float64)),
            tl.ravel(tl.sum(log_abs, axis=2).to(tl.float64)), tl.ravel(exp),
            tl.ravel(tl.min(low.to(tl.float32), axis=2)),
            tl.ravel(tl.max(high.to(tl.float32), axis=2)),
        ),
        0, join_walked,
    )  # fmt: skip
    CHAINS: tl.constexpr = WIDTH if VECTOR == 1 else WIDTH // 2
    lifted = (steps - small_steps).to(tl.float64) * (LIFT_OF_QUADS * ROWS * WIDTH)
    lifted += small_steps.to(tl.float64) * (LIFT_OF_EIGHTS * ROWS * CHAINS)
    p_log, p_log_abs = (p_log - lifted) * LN_2, (p_log_abs - lifted) * LN_2
    return (
        p_total, p_square, p_fourth, p_size, p_invert, p_sigmoid, p_root, p_log, p_log_abs, p_exp,
        p_low, p_high, tl.sum(lse_sums, axis=0) * LN_2,
    )  # fmt: skip
