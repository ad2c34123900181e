"""The totals behind the twenty means on a GPU: one launch, one read of ordinary tensors.

Tensors are cut into pieces of about equal size, which `fused_kernel` walks; a piece is read a
second time only where float32 cannot sum it.  Any number of tensors of one dtype and kind of
shape share a launch, and the host never waits: totals are handed on as a tensor.

Of small numbers, as weights are, an element costs 18.5 instructions (bfloat16, compiled for
sm_90, four rows of four columns a step): conversion 1, extremes 0.5 as two bfloat16 are compared
at once, the sums of four powers 5, that of |x| 1, x + 1e-9 and one quotient for eight of them
3.4, root and logarithm of what is above 0 4.1, the logarithm of |x| 1.5, copies to shared memory
ahead, addresses and the loop 2.  1.4 of these are special functions: the root, two eighths of a
logarithm of a product, an eighth of a reciprocal.  A quarter of a multiprocessor issues one
instruction a cycle for 32 elements, and needs 8 cycles for a special one: 18.5 and 11 cycles, so
that 4,096 x 11,008 elements take an H200 (528 such quarters, 1.98 GHz) 25 microseconds at least,
where reading them once takes 21: 1.2 times.

Of other ordinary numbers an element costs 23.1, 2.75 of them special functions: e^x beside the
root, logarithms of products of four, and a quarter of a reciprocal that serves 1 / (x + 1e-9)
and e^x / (1 + e^x) alike.  That is 23 and 22 cycles, or 1.5 times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmscout.statistics.fused_pieces import (
    Matrix,
    Tile,
    Tuning,
    as_matrix,
    cut,
    size_of_pieces,
    slots_of,
)
from lmscout.statistics.totals import TOTALS

_FIELDS, _SUMS = 16, 12  # numbers about a tensor, and of a piece, as the kernel has them
_TENSORS = 16  # of one launch


@dataclass(frozen=True)
class Launch:
    """A launch that is ready: the kernel's arguments in memory that it keeps."""

    tensors: tuple[Tensor, ...]
    tile: Tile
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
        fast = _capability(self.totals.device) if self.tuning.fast else 0
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
            ADJACENT=self.tile.adjacent,
            FAST=fast,
            SMALL=self.tuning.small,
            SLOTS=slots_of(self.tile, self.tuning) if fast else 0,
            num_warps=self.tuning.warps,
            **options,
        )


def fused_totals(tensors: Sequence[Tensor], tuning: Tuning | None = None) -> Tensor:
    """What the twenty means of each tensor follow from.

    Args:
        tensors: on one device, none empty; float32, bfloat16 or float16, any shape and strides.
        tuning: how work is cut.

    Returns:
        [tensors, totals] float64 on the device, in the order of `totals.TOTALS`.  The host
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
    tiles: dict[Tile, list[int]] = {}
    matrices = []
    for index, tensor in enumerate(tensors):
        matrix, tile = as_matrix(tensor.detach(), tuning)
        matrices.append(matrix)
        tiles.setdefault(tile, []).append(index)
    launches = []
    for tile, every in tiles.items():
        for start in range(0, len(every), _TENSORS):
            indices = every[start : start + _TENSORS]
            some = [matrices[index] for index in indices]
            launches.append((indices, _prepare(some, tile, tuning)))
    return launches


def _prepare(matrices: Sequence[Matrix], tile: Tile, tuning: Tuning) -> Launch:
    device = matrices[0].tensor.device
    slots = tuning.programs * _multiprocessors(device)
    wanted = size_of_pieces(tuple((m.n, m.rows, m.columns) for m in matrices), tile, tuning, slots)
    table = np.zeros((_TENSORS, _FIELDS), np.int64)
    n_pieces = n_stripes = n_parts = 0
    for row, matrix in enumerate(matrices):
        parts, height, stripes, width = cut(matrix.rows, matrix.columns, tile, wanted)
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
            width,
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


@cache
def _capability(device: torch.device) -> int:
    """The compute capability if its instructions are of use, else 0."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    # Two bfloat16 are compared in one instruction from Ampere on.
    return 10 * major + minor if major >= 8 else 0
