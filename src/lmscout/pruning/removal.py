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
        count = len(alive)
        steps = min(_LAZY, count)
        own, numerators = inverse.diagonal().clone(), products.diagonal().clone()
        # Removed so far: inverse -= rowsᵀ factors, products -= factorsᵀ halves + halvesᵀ factors.
        rows, factors, halves = (inverse.new_empty(steps, count) for _ in range(3))
        gone = torch.zeros(count, dtype=torch.bool, device=inverse.device)
        for step in range(steps):
            scores = (numerators / own.clamp_min(_TINY)).masked_fill_(gone, torch.inf)
            place = int(scores.argmin())
            order.append(alive[place])
            errors.append(scores[place])
            before = slice(step)
            row = inverse[place] - factors[before, place] @ rows[before]
            factor = row / own[place]
            half = (
                products[place]
                - factors[before, place] @ halves[before]
                - halves[before, place] @ factors[before]
            )
            half = half - numerators[place] / 2 * factor
            rows[step], factors[step], halves[step] = row, factor, half
            own -= row * factor
            numerators -= 2 * half * factor
            gone[place] = True
        rest = (~gone).nonzero().flatten()
        rows, factors, halves = rows[:, rest], factors[:, rest], halves[:, rest]
        inverse = inverse[rest][:, rest].addmm_(rows.T, factors, alpha=-1)
        product = factors.T @ halves
        products = products[rest][:, rest] - product - product.T
        alive = alive[rest]
    return torch.stack(order), torch.stack(errors)
