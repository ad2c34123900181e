"""Least-squares compensation of a cut output projection.

Let x be the vector that enters the projection W and x_K its kept prefix.  The compensated
projection is W' = argmin E|W x - W' x_K|² = W G_{:K} G_{KK}⁻¹ with G = E[x xᵀ].  Kept units are a
prefix, so G_KK is a leading block of G, and so is its Cholesky factor: with G = L Lᵀ,

    W' = (W L)_{:,K} L_KK⁻¹.

One factorisation and one product W L for each projection serve every prefix length; a plan costs
one triangular solve each.  Each expert has its own x, so all of this has a dimension more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lmscout.errors import LmscoutError
from lmscout.pruning.families import Affine, Place
from lmscout.pruning.moments import Moments, damped

DAMPING = 1e-3  # share of the mean diagonal: a Gram matrix of finite text has a finite rank
_CACHE_BYTES = 1 << 28


def cholesky_factor(place: Place, moments: Moments, damping: float = DAMPING) -> Tensor:
    """The Cholesky factors of damped Gram matrices, [..., n, n] in float64.

    Raises:
        LmscoutError: the matrix is not finite.
    """
    assert moments.gram is not None
    if not torch.isfinite(moments.gram).all():
        raise LmscoutError(
            f"activations of block {place[0]} {place[1]} are not finite on calibration text"
        )
    factor: Tensor = torch.linalg.cholesky(damped(moments.gram, damping))
    return factor


class Compensation:
    """Compensated output projections for any prefix of units.

    The most recent solutions are cached, since the plans of one round share many lengths.

    Attributes:
        factors: L and W L of every projection, both float32.
    """

    def __init__(
        self,
        outputs: Mapping[Place, Affine],
        moments: Iterable[tuple[Place, Moments]],
        damping: float = DAMPING,
        in_host: bool = False,
    ) -> None:
        """Factor the Gram matrices.

        Args:
            outputs: (block, kind) -> the dense output projection, in final unit order.
            moments: with Gram matrices, in the same order; the next one is taken when the one
                before it has been factored.
            damping: added to the diagonal, as a share of its mean.
            in_host: whether factors are kept in the host's memory, and copied when they are used.

        Raises:
            LmscoutError: a Gram matrix is not finite.
        """
        self._dense = dict(outputs)
        self.factors = {
            place: _factor(place, outputs[place], one, damping, in_host) for place, one in moments
        }
        self._solved: OrderedDict[tuple[int, str, int], Tensor] = OrderedDict()
        self._bytes = 0

    @classmethod
    def of_factors(
        cls,
        outputs: Mapping[Place, Affine],
        factors: Mapping[Place, tuple[Tensor, Tensor]],
        device: torch.device,
    ) -> Compensation:
        """A copy on a device: `factors` of another one, output projections of the model there."""
        copy = cls(outputs, ())
        copy.factors = {
            place: (factor.to(device), product.to(device))
            for place, (factor, product) in factors.items()
        }
        return copy

    def output(self, block: int, kind: str, entries: int) -> Affine:
        """The projection for the first entries of x: [..., width, entries] and the dense bias."""
        dense = self._dense[block, kind]
        if entries == dense.weight.shape[-1]:
            return dense
        key = (block, kind, entries)
        if key not in self._solved:
            factor, product = self.factors[block, kind]
            factor, product = (
                one.to(dense.weight.device, non_blocking=True)[..., :entries]
                for one in (factor[..., :entries, :], product)
            )
            solved = torch.linalg.solve_triangular(factor, product, upper=False, left=False)
            self._solved[key] = solved.to(dense.weight.dtype)
            self._bytes += self._solved[key].nbytes
            while self._bytes > _CACHE_BYTES and len(self._solved) > 1:
                self._bytes -= self._solved.popitem(last=False)[1].nbytes
        self._solved.move_to_end(key)
        return Affine(self._solved[key], dense.bias)


def _factor(
    place: Place, output: Affine, moments: Moments, damping: float, in_host: bool
) -> tuple[Tensor, Tensor]:
    """L and W L in float32, from a factorisation in float64."""
    factor = cholesky_factor(place, moments, damping)
    product = output.weight.double() @ factor
    both = factor.float(), product.float()
    return (_in_host(both[0]), _in_host(both[1])) if in_host else both


def _in_host(tensor: Tensor) -> Tensor:
    """A copy in the host's memory, from which a GPU reads at full speed."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return host.copy_(tensor)
