"""Least squares for a cut model: compensated output projections, and the sequential refit.

Let x be the vector that enters an output projection W and x_K its kept prefix.  The compensated
projection is W' = argmin E|W x - W' x_K|² = W G_{:K} G_{KK}⁻¹ with G = E[x xᵀ].  Kept units are a
prefix, so G_KK is a leading block of G, and so is its Cholesky factor: with G = L Lᵀ,

    W' = (W L)_{:,K} L_KK⁻¹.

One factorisation and one product W L for each projection serve every prefix length; a plan costs
one triangular solve each.  Each expert has its own x, so all of this has a dimension more.

A refit is by the cut model's own activations, block by block, attention before MLP, on calibration
text: input projections (query, key, value; gate, up) are fitted to the dense model's
pre-activations of the kept units, the output projection to the dense sublayer's update plus a share
of what the residual stream has lost so far.  Each fit is a ridge regression towards the current
weights.  At last the final norm is scaled.  Shapes do not change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.pruning.families import Affine, Family, Mixture, Place, Sublayer
from lmscout.pruning.families.family import Multiplier
from lmscout.pruning.moments import BATCH_TOKENS, Moments, batches_of, damped, retry_with_half_batch
from lmscout.pruning.plan import Plan

DAMPING = 1e-3  # share of the mean diagonal: a Gram matrix of finite text has a finite rank
CORRECTED = 0.5  # share of the residual stream's loss that an output projection makes up for
INPUT_PENALTY = 0.1  # of the mean diagonal, towards the current weights
OUTPUT_PENALTY = 0.02
_LEAST_GAIN = 0.01  # of the mean square, so that channels that a norm mutes are not corrected
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


@dataclass(frozen=True)
class Refit:
    """New weights of a cut model."""

    sublayers: Mapping[Place, Sublayer]  # what the plan keeps, with new maps
    norm: Tensor  # [width] factors of the final norm's weight


@torch.no_grad()
def refit(
    model: PreTrainedModel,
    family: Family,
    plan: Plan,
    outputs: Mapping[Place, Affine],
    windows: Tensor,
    kept_on: str | None = None,
) -> Refit:
    """Fit the weights of a cut model to the dense model, block by block.

    It starts from the compensated projections in `outputs`, or from those cut, and uses tokens
    [windows, T] int64.  The dense model, its units in final order, is not changed.  New weights are
    kept on the device `kept_on`; on the model's if None.

    Raises:
        LmscoutError: memory does not suffice for a single window.
    """
    work = partial(_refit, model, family, plan, outputs, windows.to(model.device), kept_on)
    return retry_with_half_batch(work, BATCH_TOKENS // windows.shape[1], model.device)


def _refit(
    model: PreTrainedModel,
    family: Family,
    plan: Plan,
    outputs: Mapping[Place, Affine],
    windows: Tensor,
    kept_on: str | None,
    size: int,
) -> Refit:
    dense = [family.embed(model, batch) for batch in batches_of(windows, size)]
    cut = [state.clone() for state in dense]
    contexts = [family.context(model, state) for state in dense]
    found: dict[Place, Sublayer] = {}
    sublayers = family.all_sublayers(model)
    for (place, whole), units in zip(sublayers.items(), plan.steps, strict=True):
        if not whole.units:
            continue
        dense, cut = ([state.to(whole.device) for state in some] for some in (dense, cut))
        if isinstance(whole, Mixture):  # compensation alone
            if units:
                mixture = whole.first(units)
                found[place] = replace(mixture, output=outputs.get(place, mixture.output))
                output = found[place].output.to(whole.device)
                cut = [mixture.step(*own, output) for own in zip(cut, contexts, strict=True)]
            dense = [whole.step(*state) for state in zip(dense, contexts, strict=True)]
            continue
        states = zip(dense, contexts, strict=True)
        projected = [whole.output.apply(whole.entering(*state)) for state in states]
        if units:
            first = whole.first(units)
            output = outputs.get(place, first.output).to(whole.device)
            first = first.with_maps((*first.inputs, output))
            first = _with_fitted_inputs(first, whole, dense, cut)
            inner = [first.entering(*own) for own in zip(cut, contexts, strict=True)]
            fit = _Fit([first.output], OUTPUT_PENALTY)
            for x, update, state, own in zip(inner, projected, dense, cut, strict=True):
                fit.add(x, *_output_target(whole, update, CORRECTED * (state - own)))
            first = first.with_maps((*first.inputs, *fit.solve()))
            both = zip(cut, inner, strict=True)
            cut = [own + first.added(first.output.apply(x)) for own, x in both]
            kept = (one.to(kept_on or whole.device) for one in first.maps)
            found[place] = first.with_maps(kept)
        both = zip(dense, projected, strict=True)
        dense = [state + whole.added(update) for state, update in both]
    return Refit(found, _norm_factors(family.final_norm(model), dense, cut))


def _output_target(
    whole: Sublayer, projected: Tensor, more: Tensor
) -> tuple[list[Tensor], Tensor | float]:
    """What an output projection should make, and the weight of every token's error.

    That is what the dense one has `projected`, [..., width], and what adds `more` to the residual
    stream.
    """
    after = whole.after
    if after is None:
        return [projected + more], 1.0
    if isinstance(after, Multiplier):
        return [projected + more / after.gain], 1.0
    rate, squares = after.rate(projected), after.gain.square()
    inverse = after.gain / (squares + _LEAST_GAIN * squares.mean())
    return [projected + (more * inverse / rate).to(projected.dtype)], rate


def _with_fitted_inputs(
    first: Sublayer, whole: Sublayer, dense: list[Tensor], cut: list[Tensor]
) -> Sublayer:
    """The kept units with input projections fitted to the dense model's pre-activations."""
    fit = _Fit(first.inputs, INPUT_PENALTY)
    for state, own in zip(dense, cut, strict=True):
        normed = whole.norm(state)
        fit.add(whole.norm(own), [one.linear(normed) for one in first.inputs])
    return first.with_maps((*fit.solve(), first.output))


class _Fit:
    """Ridge regression of maps of one input towards their current weights; biases stay."""

    def __init__(self, current: Sequence[Affine], penalty: float) -> None:
        self._current, self._penalty = current, penalty
        weight = current[0].weight
        out, entries = sum(len(one.weight) for one in current), weight.shape[1]
        wide = torch.promote_types(weight.dtype, torch.float32)
        self._gram = weight.new_zeros(entries, entries, dtype=wide)
        self._product = weight.new_zeros(out, entries, dtype=wide)

    def add(self, x: Tensor, targets: Sequence[Tensor], weight: Tensor | float = 1.0) -> None:
        """Add batches of inputs [..., entries], and what each map should make of them.

        `weight` [..., 1] multiplies the errors of each.
        """
        pairs = zip(self._current, targets, strict=True)
        errors = torch.cat([target - one.linear(x) for one, target in pairs], dim=-1)
        if isinstance(weight, Tensor):
            errors, x = errors * weight, x * weight
        x = x.flatten(0, -2).to(self._gram.dtype)
        self._gram.addmm_(x.T, x)
        self._product.addmm_(errors.flatten(0, -2).to(x.dtype).T, x)

    def solve(self) -> list[Affine]:
        """The fitted maps."""
        factor = torch.linalg.cholesky(damped(self._gram, self._penalty))
        change = torch.cholesky_solve(self._product.double().T, factor).T
        changes = torch.split(change, [len(one.weight) for one in self._current])
        return [
            replace(one, weight=(one.weight.double() + more).to(one.weight.dtype))
            for one, more in zip(self._current, changes, strict=True)
        ]


def _norm_factors(
    norm: Callable[[Tensor], Tensor], dense: list[Tensor], cut: list[Tensor]
) -> Tensor:
    """Factors of the final norm's weight [width] that fit its output to the dense model's."""
    both = [(norm(state).float(), norm(own).float()) for state, own in zip(dense, cut, strict=True)]
    products = torch.stack([(one * other).double().sum((0, 1)) for one, other in both]).sum(0)
    squares = torch.stack([other.square().double().sum((0, 1)) for _, other in both]).sum(0)
    return torch.where(squares > 0, products / squares, 1.0)
