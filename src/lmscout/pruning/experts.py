"""Order of removal of the experts of a mixture.

A removed expert's tokens are routed to others.  With c(A) the shares of a token by the experts A
that are left, f [experts, width] their outputs, and M the metric of the loss at the sublayer's
output (see `removal`), removing experts increases the loss by about

    1/2 E[d K d],  d = c(A) - c(all),  K = f M f

nats/token.  The expert of the least increase is removed, and so on until none is left; shares
are those of the router as the smaller model has it.  As saliency without gradients there is the
router-weighted norm of REAP (arXiv 2510.13999), the mean of c |f| over the tokens of an expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lmscout.pruning.families import Experts
from lmscout.pruning.importance import UnitOrder
from lmscout.pruning.moments import BATCH_TOKENS, batches_of

_PRODUCTS = 1 << 26  # numbers of K: of more tokens than these are for, some are taken


@dataclass(frozen=True)
class Routed:
    """How a router uses its experts.

    Attributes:
        frequency: [experts] float64, share of tokens for which each is selected.
        weighted_norm: [experts] float64, mean of share times norm of the output over these tokens.
    """

    frequency: Tensor
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

    Args:
        experts: of the dense model.
        hidden: before the sublayer, [..., width].
        metric: M at its output, [width, width].

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
