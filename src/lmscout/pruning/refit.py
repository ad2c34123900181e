"""Sequential refit of a cut model, by least squares on its own activations.

Block by block, attention before MLP, on calibration text: input projections (query, key, value;
gate, up) are fitted to the dense model's pre-activations of the kept units, the output projection
to the dense sublayer's update plus a share of what the residual stream has lost so far.  Each fit
is a ridge regression towards the current weights.  At last the final norm is scaled.  Shapes do not
change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmscout.pruning.families import Affine, Family, Mixture, Multiplier, Place, Sublayer
from lmscout.pruning.moments import BATCH_TOKENS, batches_of, damped, retry_with_half_batch
from lmscout.pruning.plan import Plan

CORRECTED = 0.5  # share of the residual stream's loss that an output projection makes up for
INPUT_PENALTY = 0.1  # of the mean diagonal, towards the current weights
OUTPUT_PENALTY = 0.02
_LEAST_GAIN = 0.01  # of the mean square, so that channels that a norm mutes are not corrected


@dataclass(frozen=True)
class Refit:
    """New weights of a cut model.

    Attributes:
        sublayers: what the plan keeps, with new maps.
        norm: [width] factors of the final norm's weight.
    """

    sublayers: Mapping[Place, Sublayer]
    norm: Tensor


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

    Args:
        model: the dense model, its units in final order; never changed.
        family: its family.
        plan: the units that each block keeps.
        outputs: compensated output projections to start from; none for those cut.
        windows: [windows, T] int64 calibration tokens.
        kept_on: device for the new weights; the model's if None.

    Returns:
        The new weights.

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

    Args:
        whole: the dense sublayer.
        projected: the output of its projection, [..., width].
        more: added to the residual stream beyond that, [..., width].
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
