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

A removed expert's tokens are routed to others.  With c(A) the shares of a token by the experts A
that are left, and f [experts, width] their outputs, removing experts increases the loss by about

    ½ E[d K d],  d = c(A) - c(all),  K = f M f

nats/token.  Shares are those of the router as the smaller model has it.  As saliency without
gradients there is the router-weighted norm of REAP (arXiv 2510.13999), the mean of c |f| over the
tokens of an expert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional

from lmscout.errors import LmscoutError
from lmscout.evaluation.cost import median_seconds
from lmscout.pruning.compensation import cholesky_factor
from lmscout.pruning.families import Experts, Place, Sublayer
from lmscout.pruning.importance import UnitOrder
from lmscout.pruning.moments import BATCH_TOKENS, Moments, batches_of

_LAZY = 128  # removals of single columns that are applied to the matrices at once
_TINY = 1e-300
_TIMED = 2048  # columns of matrices whose time is measured for an estimate
_TIMED_GROUPS = 8
_PRODUCTS = 1 << 26  # numbers of K: of more tokens than these are for, some are taken


def removal_order(place: Place, sublayer: Sublayer, moments: Moments, metric: Tensor) -> UnitOrder:
    """The order in which Optimal Brain Surgeon removes the units of a sublayer.

    It takes the moments of what enters the output projection, with the Gram matrix, and the metric
    M at its output, [width, width].

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


def order_seconds(columns: int, units: int, device: torch.device) -> float:
    """Estimate the seconds of `removal_order`, for columns of equal units, by parts of the work."""
    size = columns // units
    few = max(size, min(columns, _TIMED) // size * size)
    few_units, share = few // size, columns / few
    eye = torch.eye(few, dtype=torch.float64, device=device)
    seconds_of = partial(median_seconds, device=device, repeats=1)
    seconds = share**3 * seconds_of(lambda: torch.cholesky_inverse(torch.linalg.cholesky(eye)))
    if size > 1:
        some = min(few_units, _TIMED_GROUPS)
        part = eye[: some * size, : some * size]
        return seconds + (units / some) ** 3 * seconds_of(lambda: _remove_groups(part, part, some))

    def batch(columns: int) -> float:
        def remove() -> None:
            one = _Columns(eye[:columns, :columns], eye[:columns, :columns], min(_LAZY, columns))
            _repeat(one.remove, len(one.order), device)
            one.updated(torch.arange(len(one.order), columns, device=device))

        return seconds_of(remove)

    least, most = batch(min(_LAZY, few)), batch(few)
    left = torch.arange(units, 0, -_LAZY)  # columns before each batch, whose square it takes
    return seconds + float((least + max(0.0, most - least) * (left / few) ** 2).sum())


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


@dataclass(frozen=True)
class Routed:
    """How a router uses its experts."""

    frequency: Tensor  # [experts] float64, share of tokens for which each is selected
    # [experts] float64, mean of share times norm of the output over these tokens
    weighted_norm: Tensor


@torch.no_grad()
def routed(experts: Experts, hidden: Tensor) -> Routed:
    """The use of experts on the hidden states that enter the sublayer, [..., width]."""
    counts, norms = torch.zeros(2, experts.units, dtype=torch.float64)
    tokens = 0
    for x in batches_of(experts.norm(hidden).flatten(0, -2), BATCH_TOKENS):
        tokens += len(x)
        for number, own, shares in experts.routed(x):
            output = experts.expert(number, x[own]).float()
            counts[number] += len(own)
            norms[number] += (output.norm(dim=-1) * shares[:, 0]).double().sum().cpu()
    return Routed(counts / tokens, norms / counts.clamp_min(1))


@torch.no_grad()
def order_of_experts(experts: Experts, hidden: Tensor, metric: Tensor) -> UnitOrder:
    """The order in which experts are removed, by the increase of the loss.

    It takes the hidden state before the sublayer, [..., width], and the metric M at its output,
    [width, width].

    Returns:
        The expert that is removed last first; the score of one is the increase of the loss by its
        removal after those behind it, in nats/token, 0 where the loss does not increase.
    """
    x = experts.norm(hidden).flatten(0, -2)
    x = x[:: max(1, len(x) * experts.units**2 // _PRODUCTS)]
    logits, products = _logits_and_products(experts, x, metric)
    shares = experts.shares(logits)

    def increase(left: list[int]) -> float:
        change = -shares
        if left:
            masked = torch.full_like(logits, -torch.inf)
            masked[:, left] = logits[:, left]
            change = experts.shares(masked, len(left)) - shares
        return torch.einsum("te,tef,tf->t", change, products, change).mean().item() / 2

    left, order, totals = list(range(experts.units)), [], [0.0]
    while left:
        increases = {one: increase([other for other in left if other != one]) for one in left}
        gone = min(increases, key=lambda one: increases[one])
        left.remove(gone)
        order.append(gone)
        totals.append(max(totals[-1], increases[gone]))
    errors = torch.tensor(totals, dtype=torch.float64).diff()
    return UnitOrder(torch.tensor(order[::-1]), errors.flip(0))


def _logits_and_products(experts: Experts, x: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
    """Router logits [n, experts], and K of each token, [n, experts, experts] in float32."""
    values, vectors = torch.linalg.eigh(metric.double())
    root = (vectors * values.clamp_min(0).sqrt()).float()
    logits, products = [], []
    for part in batches_of(x, max(1, BATCH_TOKENS // experts.units)):
        every = [experts.expert(number, part).float() @ root for number in range(experts.units)]
        outputs = torch.stack(every, dim=1)
        products.append(outputs @ outputs.transpose(1, 2))
        logits.append(functional.linear(part, experts.router).float())
    return torch.cat(logits), torch.cat(products)
