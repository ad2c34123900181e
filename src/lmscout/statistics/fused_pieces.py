"""How tensors are cut into the pieces that the fused kernel walks: equal ones, in few waves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

_TALL = 128  # rows from which a tile has several
_WIDE = 128  # columns of such a tile
_SHARED = 1 << 15  # bytes of shared memory at most, of a program


@dataclass(frozen=True)
class Tuning:
    """How work is cut; results do not depend on it beyond rounding.

    Attributes:
        warps: of a program.
        programs: that a multiprocessor holds at once.
        most: elements of a piece at most, where there are enough.
        least: elements of a piece at least.
        own: elements that could be walked in the time that a piece takes besides.
        fast: approximate by the device's instructions.
        registers: at most, of a thread; 0 lets the compiler choose.
        vector: elements that a thread loads at once, within 16 bytes.
        small: add numbers that look small by sums of their powers.
        slots: steps that have a place in shared memory, all but one of them on their way there
            while one is added; a power of two, or 0 to load a step when it is needed.
    """

    warps: int = 4
    programs: int = 6
    most: int = 1 << 19
    least: int = 1 << 14
    own: int = 24_576
    fast: bool = True
    registers: int = 80
    vector: int = 4
    small: bool = True
    slots: int = 4


@dataclass(frozen=True)
class Matrix:
    """A tensor as the kernel sees it; `axis` is the length of the tensor's first axis."""

    tensor: Tensor
    n: int
    rows: int
    columns: int
    row_stride: int
    column_stride: int
    axis: int


@dataclass(frozen=True)
class Tile:
    """[rows, groups, vector] elements at a time, four times: one below the other."""

    dtype: torch.dtype
    rows: int
    groups: int
    vector: int
    adjacent: bool

    @property
    def width(self) -> int:
        """Columns of a stripe."""
        return self.groups * self.vector


def as_matrix(tensor: Tensor, tuning: Tuning) -> tuple[Matrix, Tile]:
    """A tensor as the kernel walks it; tensors of one tile can share a launch."""
    most = min(tuning.vector, 16 // tensor.element_size())
    threads = 32 * tuning.warps
    n = tensor.numel()
    axis = tensor.shape[0] if tensor.dim() else 1
    if axis == 1:  # nothing is normalised, so that a single row can be folded
        flat = tensor.reshape(-1).contiguous()
        columns = min(threads * most, n)
        matrix = Matrix(flat, n, -(-n // columns), columns, columns, 1, axis)
    else:
        view = tensor if tensor.dim() == 2 else tensor.reshape(axis, -1)
        (height, width), (down, right) = view.shape, view.stride()
        matrix = Matrix(view, n, height, width, down, right, axis)
    vector = _together(matrix, most)
    # A tile of one row sums columns without asking other threads; few rows have to be so.
    rows = 1 if axis < _TALL else max(1, threads * vector // _WIDE)
    if axis >= _TALL and matrix.columns < _WIDE:
        rows = threads
    adjacent = matrix.column_stride == 1
    return matrix, Tile(tensor.dtype, rows, threads // rows, vector, adjacent)


def _together(matrix: Matrix, most: int) -> int:
    """Elements that a thread can load at once: rows begin at multiples of as many."""
    if matrix.column_stride != 1:
        return 1
    first = matrix.tensor.data_ptr() // matrix.tensor.element_size()
    return math.gcd(first, matrix.row_stride, most)


def slots_of(tile: Tile, tuning: Tuning) -> int:
    """Steps that can have a place in shared memory: a thread copies 4 to 16 bytes of a tile."""
    size = tile.vector * tile.dtype.itemsize
    step = 4 * tile.rows * tile.width * tile.dtype.itemsize
    slots = min(tuning.slots, _SHARED // step)
    return slots if size >= 4 and slots > 1 else 0


def cut(rows: int, columns: int, tile: Tile, size: float) -> tuple[int, int, int, int]:
    """Parts of a column, the height of one, stripes, and the width of one."""
    step = 4 * tile.rows
    parts = max(1, round(rows * tile.width / size))
    height = -(-rows // (parts * step)) * step
    parts = -(-rows // height)
    wide = max(1, int(size / (rows * tile.width))) if parts == 1 else 1
    return parts, height, -(-columns // (wide * tile.width)), wide * tile.width


@cache
def size_of_pieces(
    matrices: tuple[tuple[int, int, int], ...], tile: Tile, tuning: Tuning, slots: int
) -> float:
    """The elements of a piece with which the last program ends soonest.

    Pieces come in waves of as many as the device holds, as long as their largest; a piece
    costs something of its own, so that few waves are good, and so are equal pieces.
    """
    share = sum(n for n, _, _ in matrices) / slots
    best, soonest = float(tuning.least), float("inf")
    for sixteenths in range(12, 193):
        size = max(16 * share / sixteenths, float(tuning.least))
        if size > tuning.most:
            continue
        largest = count = 0
        for _, rows, columns in matrices:
            parts, height, stripes, width = cut(rows, columns, tile, size)
            largest = max(largest, min(height, rows) * min(width, columns))
            count += parts * stripes
        end = -(-count // slots) * (largest + tuning.own)
        if end < soonest:
            best, soonest = size, end
    return min(best, float(tuning.most))
