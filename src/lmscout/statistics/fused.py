"""The totals of tensors on a GPU, in two stages: a Triton kernel sums pieces, torch joins them.

A program of the kernel reads one piece of a tensor, a block of rows and columns, once and sums
it in float64; the joining step adds the pieces and takes the logarithms of the columns' sums of
e^x.  Float64 needs no second pass for large, small or nearly equal numbers.  `reductions` is the
definition, and computes every tensor for which this module returns None.

The module imports without Triton, and `fused_totals` returns None for all tensors then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmscout.statistics.reductions import EPS, TOTALS, Totals

try:
    import triton
    import triton.language as tl
except ImportError:  # no CUDA build of PyTorch
    triton = tl = None

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LARGEST = 600.0  # of |x|: sums of e^x over a column stay within float64
_TILE = 512  # elements that a program holds at once, four a thread
_TILES = 32  # of a piece
_SUMS, _EXTREMES = 9, 2  # numbers that a piece has


def _kernel(
    tensors, sums, extremes, powers, n_rows, n_columns, tensor_stride, row_stride, column_stride,
    height, width, n_stripes, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, NORMALISED: tl.constexpr,
):  # fmt: skip
    """Sum one piece, of `height` rows and `width` columns, of one tensor of a stack.

    Program (p, k) sums piece p of tensor k, whose pieces are numbered along rows.  It stores to
    `sums` [tensors, pieces, 9] float64 the sums, over its elements x and with the tensor's first
    element c, of x - c, (x - c)^2, max(x, 0) - max(c, 0), e^x, 1 / (x + eps), the sigmoid, the
    root, ln x and ln |x|; to `extremes` [tensors, pieces, 2] -min and max; to `powers` [tensors,
    blocks of rows, columns] float64, where NORMALISED, the sums of e^x down its columns.
    """
    piece, which = tl.program_id(0), tl.program_id(1)
    part, stripe = piece // n_stripes, piece % n_stripes
    base = tensors + which.to(tl.int64) * tensor_stride
    top, left = part * height, stripe * width
    bottom, right = tl.minimum(top + height, n_rows), tl.minimum(left + width, n_columns)
    centre = tl.load(base).to(tl.float64)
    centre_relu = tl.maximum(centre, 0.0)
    zero = tl.zeros([ROWS, COLUMNS], tl.float64)
    total, square, relu, exp, invert = zero, zero, zero, zero, zero
    sigmoid, root, log, log_abs = zero, zero, zero, zero
    low, high = zero - float("inf"), zero - float("inf")
    start = left
    while start < right:
        column = start + tl.arange(0, COLUMNS)[None, :]
        at_column = base + column.to(tl.int64) * column_stride
        power = zero
        first = top
        while first < bottom:
            row = first + tl.arange(0, ROWS)[:, None]
            here = (row < bottom) & (column < right)
            at = at_column + row.to(tl.int64) * row_stride
            narrow = tl.load(at, mask=here, other=1.0).to(tl.float32)
            x = narrow.to(tl.float64)
            size = tl.abs(x)
            positive = here & (x > 0.0)

            apart = tl.where(here, x - centre, 0.0)
            total += apart
            square += apart * apart
            relu += tl.where(here, tl.maximum(x, 0.0) - centre_relu, 0.0)
            low = tl.maximum(low, tl.where(here, -x, -float("inf")))
            high = tl.maximum(high, tl.where(here, x, -float("inf")))

            decay = tl.exp(-size)
            side = 1.0 / (1.0 + decay)
            sigmoid += tl.where(here, tl.where(x >= 0.0, side, decay * side), 0.0)
            power += tl.where(here, tl.where(x > 0.0, 1.0 / decay, decay), 0.0)
            # The shift is float32's: where it rounds to 0 is the pole.
            shifted = narrow + eps
            defined = here & (shifted != 0.0)
            invert += tl.where(defined, 1.0 / tl.where(defined, shifted, 1.0).to(tl.float64), 0.0)
            root += tl.sqrt(tl.where(positive, x, 0.0))
            log_size = tl.log(tl.where(here & (size > 0.0), size, 1.0))
            log += tl.where(positive, log_size, 0.0)
            log_abs += log_size
            first += ROWS
        exp += power
        if NORMALISED:
            n_parts = tl.num_programs(0) // n_stripes
            to = (which * n_parts + part).to(tl.int64) * n_columns
            place = start + tl.arange(0, COLUMNS)
            tl.store(powers + to + place, tl.sum(power, axis=0), mask=place < right)
        start += COLUMNS
    to = which.to(tl.int64) * tl.num_programs(0) + piece
    at = sums + to * 9
    tl.store(at, tl.sum(total))
    tl.store(at + 1, tl.sum(square))
    tl.store(at + 2, tl.sum(relu))
    tl.store(at + 3, tl.sum(exp))
    tl.store(at + 4, tl.sum(invert))
    tl.store(at + 5, tl.sum(sigmoid))
    tl.store(at + 6, tl.sum(root))
    tl.store(at + 7, tl.sum(log))
    tl.store(at + 8, tl.sum(log_abs))
    tl.store(extremes + to * 2, tl.max(low))
    tl.store(extremes + to * 2 + 1, tl.max(high))


_SIZES = ("n_rows", "n_columns", "tensor_stride", "height", "width", "n_stripes")
_compiled: Any = triton and triton.jit(_kernel, do_not_specialize=_SIZES)


def fused_totals(tensors: Sequence[Tensor]) -> list[Totals | None]:
    """`TOTALS` of tensors on one GPU; those of one shape and dtype share a launch.

    None where the plain walk has to compute them: without Triton, for a dtype not in `DTYPES`, for
    a tensor that is empty, not finite, or has an element beyond 600.
    """
    found: list[Totals | None] = [None] * len(tensors)
    alike: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(tensors):
        if triton is not None and tensor.dtype in DTYPES and tensor.numel() > 0:
            alike.setdefault((tensor.shape, tensor.dtype), []).append(index)
    for (shape, _), indices in alike.items():
        rows = shape[0] if shape else 1
        matrices = [tensors[index].detach().reshape(rows, -1) for index in indices]
        stack = matrices[0][None] if len(matrices) == 1 else torch.stack(matrices)
        for index, totals in zip(indices, _totals(stack), strict=True):
            found[index] = totals
    return found


def _totals(stack: Tensor) -> list[Totals | None]:
    """The totals of a stack [tensors, rows, columns] of tensors that are not empty."""
    n_tensors, rows, columns = stack.shape
    n = rows * columns
    found = walk(stack).cpu().numpy()
    total, squared, relu, *sums, minus_low, high, centre, log_sum_exp = found.T
    with np.errstate(invalid="ignore"):
        mean = centre + total / n
        deviation = np.maximum(squared - total**2 / n, 0.0)
        relu_mean = np.maximum(centre, 0.0) + relu / n
        usable = np.isfinite(total) & (np.maximum(minus_low, high) <= _LARGEST)
    count = np.full(n_tensors, float(n))
    moments = (-minus_low, high, mean, deviation, relu_mean)
    table = np.stack([count, np.full(n_tensors, float(rows)), *moments, *sums, log_sum_exp], 1)
    assert table.shape[1] == len(TOTALS)
    return [tuple(row) if one else None for row, one in zip(table.tolist(), usable, strict=True)]


def walk(stack: Tensor) -> Tensor:
    """Launch the kernel on a stack [tensors, rows, columns] and join its pieces, without waiting.

    Returns:
        [tensors, 13] float64 on the device: the nine sums, -min, max, the first element and the
        mean over columns of ln sum e^x (0 for one row).
    """
    n_tensors, rows, columns = stack.shape
    down, across, height, width = _cut(rows, columns)
    parts, stripes = triton.cdiv(rows, height), triton.cdiv(columns, width)
    pieces = parts * stripes

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64, device=stack.device)

    sums, extremes = empty(n_tensors, pieces, _SUMS), empty(n_tensors, pieces, _EXTREMES)
    powers = empty(n_tensors, parts, columns) if rows > 1 else sums
    with torch.cuda.device(stack.get_device()):
        _compiled[(pieces, n_tensors)](
            stack, sums, extremes, powers, rows, columns, *stack.stride(),
            height, width, stripes, EPS,
            ROWS=down, COLUMNS=across, NORMALISED=rows > 1, num_warps=4,
        )  # fmt: skip
    logs = powers.sum(1).log().mean(1) if rows > 1 else empty(n_tensors).zero_()
    first = stack[:, 0, 0].double()
    ends = torch.stack([first, logs], 1)
    return torch.cat([sums.sum(1), extremes.amax(1), ends], 1)


def _cut(rows: int, columns: int) -> tuple[int, int, int, int]:
    """Rows and columns of a tile, powers of two, and of a piece, multiples of them."""
    power = triton.next_power_of_2
    down = min(power(rows), _TILE // min(power(columns), 128))
    across = _TILE // down
    tiles_down = min(triton.cdiv(rows, down), _TILES)
    return down, across, tiles_down * down, max(1, _TILES // tiles_down) * across
