"""The totals behind the twenty means on a GPU: one launch, one read of ordinary tensors.

Tensors are cut into pieces of about equal size, which `fused_kernel` walks; a piece is read a
second time only where float32 cannot sum it.  Any number of tensors of one dtype and kind of
shape share a launch, and the host never waits: totals are handed on as a tensor.

An element costs 26.3 instructions (bfloat16, compiled for sm_90): conversion 1, extremes 2, two
comparisons for the halves of the number line, 16.8 multiplications and additions, and 3.5
special functions, which are e^x, the root, the logarithm, and half a reciprocal: 1 / (x + 1e-9)
and 1 / (1 + e^x) of two elements are four quotients over one product.  A quarter of a
multiprocessor issues one instruction a cycle for 32 elements, and needs 8 cycles for a special
one, so both bounds are nearly one: 26.3 and 28 cycles.  On an H200 (528 such quarters,
1.98 GHz) 4,096 x 11,008 elements take 38 microseconds at least, where reading them once takes
21: 1.8 times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmscout.statistics.reductions import TOTALS

_FIELDS, _SUMS = 16, 12  # numbers about a tensor, and of a piece, as the kernel has them
_TENSORS = 16  # of one launch
_TALL = 128  # rows from which a tile is 16 rows high


@dataclass(frozen=True)
class Tuning:
    """How work is cut; results do not depend on it beyond rounding.

    Attributes:
        warps: of a program.
        programs: that a multiprocessor holds at once.
        most: elements of a piece at most, where there are enough.
        least: elements of a piece at least.
        fast: approximate by the device's instructions.
        registers: at most, of a thread; 0 lets the compiler choose.
    """

    warps: int = 4
    programs: int = 5
    most: int = 1 << 17
    least: int = 1 << 14
    fast: bool = True
    registers: int = 96


@dataclass(frozen=True)
class _Matrix:
    """A tensor as the kernel sees it; `axis` is the length of the tensor's first axis."""

    tensor: Tensor
    n: int
    rows: int
    columns: int
    row_stride: int
    column_stride: int
    axis: int


@dataclass(frozen=True)
class _Tile:
    """[rows, groups, vector] elements that a program takes at a time, twice: side by side."""

    dtype: torch.dtype
    rows: int
    groups: int
    vector: int
    aligned: bool

    @property
    def width(self) -> int:
        """Columns of a stripe."""
        return 2 * self.groups * self.vector


@dataclass(frozen=True)
class Launch:
    """A launch that is ready: the kernel's arguments in memory that it keeps."""

    tensors: tuple[Tensor, ...]
    tile: _Tile
    tuning: Tuning
    table: Tensor
    sums: Tensor
    parts: Tensor
    stripe_logs: Tensor
    tickets: Tensor
    totals: Tensor

    def run(self) -> Any:
        """Write `totals`; does not wait for the device.

        Returns:
            The compiled kernel, which knows its registers.
        """
        from lmscout.statistics import fused_kernel  # only where it is run is Triton needed

        n_pieces = self.sums.shape[1]
        options = {"maxnreg": self.tuning.registers} if self.tuning.registers else {}
        return fused_kernel.walk[(n_pieces,)](
            self.table,
            self.sums,
            self.parts[0],
            self.parts[1],
            self.stripe_logs,
            self.tickets,
            self.totals,
            len(self.tensors),
            n_pieces,
            len(self.stripe_logs),
            DTYPE=fused_kernel.DTYPES[self.tile.dtype],
            ROWS=self.tile.rows,
            GROUPS=self.tile.groups,
            VECTOR=self.tile.vector,
            TENSORS=_TENSORS,
            ALIGNED=self.tile.aligned,
            FAST=self.tuning.fast and self.totals.is_cuda,
            num_warps=self.tuning.warps,
            **options,
        )


def fused_totals(tensors: Sequence[Tensor], tuning: Tuning | None = None) -> Tensor:
    """What the twenty means of each tensor follow from.

    Args:
        tensors: on one device, none empty; float32, bfloat16 or float16, any shape and strides.
        tuning: how work is cut.

    Returns:
        [tensors, totals] float64 on the device, in the order of `reductions.TOTALS`.  The host
        does not wait for it; the tensors may be freed, or overwritten on the same stream.
    """
    result = None
    for indices, launch in prepare(tensors, tuning):
        launch.run()
        if len(indices) == len(tensors):
            return launch.totals
        if result is None:
            result = launch.totals.new_empty(len(tensors), len(TOTALS))
        for row, index in enumerate(indices):
            result[index] = launch.totals[row]
    if result is None:
        raise ValueError("no tensor")
    return result


def prepare(
    tensors: Sequence[Tensor], tuning: Tuning | None = None
) -> list[tuple[list[int], Launch]]:
    """One launch for the tensors of each dtype and kind of shape.

    Args:
        tensors: as for `fused_totals`; they have to live as long as the launches are used.
        tuning: how work is cut.

    Returns:
        The places of a launch's tensors, and the launch.
    """
    tuning = tuning or Tuning()
    tiles: dict[_Tile, list[int]] = {}
    matrices = []
    for index, tensor in enumerate(tensors):
        matrix, tile = _as_matrix(tensor.detach(), tuning)
        matrices.append(matrix)
        tiles.setdefault(tile, []).append(index)
    launches = []
    for tile, every in tiles.items():
        for start in range(0, len(every), _TENSORS):
            indices = every[start : start + _TENSORS]
            some = [matrices[index] for index in indices]
            launches.append((indices, _prepare(some, tile, tuning)))
    return launches


def _as_matrix(tensor: Tensor, tuning: Tuning) -> tuple[_Matrix, _Tile]:
    vector = 16 // tensor.element_size()
    threads = 32 * tuning.warps
    n = tensor.numel()
    axis = tensor.shape[0] if tensor.dim() else 1
    if axis == 1:  # nothing is normalised, so that a single row can be folded
        flat = tensor.reshape(-1).contiguous()
        columns = min(2 * threads * vector, n)
        matrix = _Matrix(flat, n, -(-n // columns), columns, columns, 1, axis)
        rows = 1
    else:
        view = tensor if tensor.dim() == 2 else tensor.reshape(axis, -1)
        (height, width), (down, right) = view.shape, view.stride()
        matrix = _Matrix(view, n, height, width, down, right, axis)
        # A tile of one row sums columns without asking other threads; few rows have to be so.
        rows = 1 if axis < _TALL else 16
        if axis >= _TALL and matrix.columns < 2 * vector * threads // 16:
            rows = threads
    aligned = (
        matrix.column_stride == 1
        and matrix.row_stride % vector == 0
        and matrix.tensor.data_ptr() % 16 == 0
    )
    return matrix, _Tile(tensor.dtype, rows, threads // rows, vector, aligned)


def _prepare(matrices: Sequence[_Matrix], tile: _Tile, tuning: Tuning) -> Launch:
    device = matrices[0].tensor.device
    slots = tuning.programs * _multiprocessors(device)
    wanted = sum(matrix.n for matrix in matrices) / slots
    if wanted > tuning.most:  # many pieces anyway: small ones end together
        wanted = tuning.most / 2
    table = np.zeros((_TENSORS, _FIELDS), np.int64)
    n_pieces = n_stripes = n_parts = 0
    for row, matrix in enumerate(matrices):
        size = max(wanted, tuning.least)
        parts = max(1, int(matrix.rows * tile.width / size))
        height = -(-matrix.rows // (parts * tile.rows)) * tile.rows
        parts = -(-matrix.rows // height)
        wide = max(1, int(size / (matrix.rows * tile.width))) if parts == 1 else 1
        stripes = -(-matrix.columns // (wide * tile.width))
        table[row, :15] = (
            matrix.tensor.data_ptr(),
            matrix.rows,
            matrix.columns,
            matrix.row_stride,
            matrix.column_stride,
            matrix.n,
            n_pieces,
            parts * stripes,
            parts,
            height,
            wide * tile.width,
            n_parts,
            matrix.axis,
            n_stripes,
            stripes,
        )
        n_pieces += parts * stripes
        n_stripes += stripes
        if parts > 1 and matrix.axis > 1:
            n_parts += parts * matrix.columns
    float64 = partial(torch.empty, dtype=torch.float64, device=device)
    return Launch(
        tuple(matrix.tensor for matrix in matrices),
        tile,
        tuning,
        torch.from_numpy(table).to(device, non_blocking=True),
        float64((_SUMS, n_pieces)),
        torch.empty(2, -(-n_parts // 4) * 4, dtype=torch.float32, device=device),
        float64((n_stripes,)),
        torch.zeros(n_stripes + len(matrices), dtype=torch.int32, device=device),
        float64((len(matrices), len(TOTALS))),
    )


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
