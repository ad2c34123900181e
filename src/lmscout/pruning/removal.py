"""Order of removal by Optimal Brain Surgeon, in the metric of the loss.

Let x [n] enter the output projection W [d, n] of a sublayer, G = E[x xᵀ], and let g [d] be the
gradient of the loss at the sublayer's output, M = E[g gᵀ].  Removing a set S of columns, with the
others fitted again by least squares, changes the output by δ, and the loss by about E[(gᵀ δ)²] / 2
nats/token, which is

    ½ tr((M^½ W)_S [(G⁻¹)_SS]⁻¹ (M^½ W)_Sᵀ)

if δ and g are independent.  The unit with the least increase is removed, W and G⁻¹ are updated, and
so on until nothing is left (Hassibi and Stork 1993; ZipLM, arXiv 2302.04089).  The order is nested:
a plan keeps the units that are removed last, and the sum of the increases of what it removes
estimates its loss increase, in one unit for all sublayers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from lmscout.errors import LmscoutError
from lmscout.pruning.compensation import cholesky_factor
from lmscout.pruning.families import Place, Sublayer
from lmscout.pruning.importance import UnitOrder
from lmscout.pruning.moments import Moments

_LAZY = 128  # removals of single columns that are applied to the matrices at once
_TINY = 1e-300


def removal_order(place: Place, sublayer: Sublayer, moments: Moments, metric: Tensor) -> UnitOrder:
    """The order in which Optimal Brain Surgeon removes the units of a sublayer.

    Args:
        place: block and kind, for messages.
        sublayer: of the dense model.
        moments: of what enters its output projection, with the Gram matrix.
        metric: M at its output, [width, width].

    Returns:
        The unit that is removed last first; the score of a unit is the increase of the loss by
        its removal after those behind it, in nats/token.

    Raises:
        LmscoutError: a Gram matrix or a metric is not finite.
    """
    inverse = torch.cholesky_inverse(cholesky_factor(place, moments))
    weight = sublayer.output.weight.to(inverse.dtype)
    products = weight.T @ (metric.to(inverse.dtype) @ weight) / 2
    if not torch.isfinite(products).all():
        raise LmscoutError(
            f"gradients of block {place[0]} {place[1]} are not finite: is the model sound?"
        )
    remove = _remove_columns if len(inverse) == sublayer.units else _remove_groups
    order, errors = remove(products, inverse, sublayer.units)
    return UnitOrder(order.flip(0).cpu(), errors.flip(0).cpu() / moments.tokens)


def _remove_groups(products: Tensor, inverse: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """Remove groups of columns one after the other; the [n, n] matrices shrink with each."""
    size = len(inverse) // units
    alive = torch.arange(units, device=inverse.device)
    order, errors = [], []
    while len(alive):
        own = torch.linalg.inv(_diagonal_blocks(inverse, size))
        scores = (own * _diagonal_blocks(products, size)).sum((1, 2))
        place = int(scores.argmin())
        order.append(alive[place])
        errors.append(scores[place])
        gone = slice(place * size, (place + 1) * size)
        rest = torch.cat([torch.arange(0, gone.start), torch.arange(gone.stop, len(inverse))])
        rest = rest.to(inverse.device)
        factor = own[place] @ inverse[gone][:, rest]
        half = products[rest][:, gone] @ factor
        products = (
            products[rest][:, rest] - half - half.T + factor.T @ products[gone, gone] @ factor
        )
        inverse = inverse[rest][:, rest] - inverse[rest][:, gone] @ factor
        alive = torch.cat([alive[:place], alive[place + 1 :]])
    return torch.stack(order), torch.stack(errors)


def _diagonal_blocks(matrix: Tensor, size: int) -> Tensor:
    """[n, n] to [n / size, size, size]."""
    blocks = matrix.view(len(matrix) // size, size, -1, size)
    return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _remove_columns(products: Tensor, inverse: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """Remove single columns, `_LAZY` of them before the [n, n] matrices are updated and shrunk."""
    alive = torch.arange(units, device=inverse.device)
    order, errors = [], []
    while len(alive):
        columns = _Columns(products, inverse, min(_LAZY, len(alive)))
        _repeat(columns.remove, len(columns.order), inverse.device)
        order.append(alive[columns.order])
        errors.append(columns.errors)
        rest = (~columns.gone).nonzero().flatten()
        products, inverse = columns.updated(rest)
        alive = alive[rest]
    return torch.cat(order), torch.cat(errors)


class _Columns:
    """Columns that are removed one after the other; the matrices stay as they were.

    What was removed so far changes them: inverse - rowsᵀ factors, and
    products - factorsᵀ halves - halvesᵀ factors.
    """

    def __init__(self, products: Tensor, inverse: Tensor, count: int) -> None:
        self._products, self._inverse = products, inverse
        self._own, self._numerators = inverse.diagonal().clone(), products.diagonal().clone()
        self._rows, self._factors, self._halves = inverse.new_zeros(3, count, len(inverse))
        self._step = torch.zeros(1, dtype=torch.long, device=inverse.device)
        self.gone = torch.zeros(len(inverse), dtype=torch.bool, device=inverse.device)
        self.order = torch.zeros(count, dtype=torch.long, device=inverse.device)
        self.errors = inverse.new_zeros(count)

    def remove(self) -> None:
        """Remove the column with the least error, in place and without waiting for a device."""
        scores = (self._numerators / self._own.clamp_min(_TINY)).masked_fill_(self.gone, torch.inf)
        error, place = scores.min(0, keepdim=True)
        factors, halves = (one.index_select(1, place).T for one in (self._factors, self._halves))
        row = self._inverse.index_select(0, place) - factors @ self._rows
        factor = row / self._own.index_select(0, place)
        half = self._products.index_select(0, place) - factors @ self._halves
        half -= halves @ self._factors + self._numerators.index_select(0, place) / 2 * factor
        self._own.addcmul_(row[0], factor[0], value=-1)
        self._numerators.addcmul_(half[0], factor[0], value=-2)
        self.gone.index_fill_(0, place, True)
        both = (self._rows, row), (self._factors, factor), (self._halves, half)
        for whole, one in (*both, (self.order, place), (self.errors, error)):
            whole.index_copy_(0, self._step, one)
        self._step += 1

    def updated(self, rest: Tensor) -> tuple[Tensor, Tensor]:
        """The products and the inverse of the columns that are left."""
        rows, factors, halves = (one[:, rest] for one in (self._rows, self._factors, self._halves))
        product = factors.T @ halves
        return (
            self._products[rest][:, rest] - product - product.T,
            self._inverse[rest][:, rest].addmm_(rows.T, factors, alpha=-1),
        )


def _repeat(step: Callable[[], None], count: int, device: torch.device) -> None:
    """Repeat a step of operations in place; on CUDA as a graph, whose launch is one call."""
    if device.type != "cuda" or count == 1:
        for _ in range(count):
            step()
        return
    stream, current = _side_stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        step()  # lets libraries allocate before the capture
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        try:
            step()
        finally:
            graph.capture_end()
        for _ in range(count - 1):
            graph.replay()
    current.wait_stream(stream)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
