"""How much each unit matters: the methods, each a function from a model to unit scores.

- random: a uniform draw, the floor that every method has to beat.
- magnitude: sum of w² over the unit's rows and columns (Han et al., arXiv 1506.02626).
- taylor: sum of abs(w g) over the unit's rows and columns (LLM-Pruner, arXiv 2305.11627).
- activation: sum of abs(w) times the norm of the input, over the unit's output columns (Wanda,
  arXiv 2306.11695).
- fluctuation: sum of w² times the variance of the input, over the unit's output columns (FLAP,
  arXiv 2312.11983).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.pruning.families import AttentionParts, Family, MlpParts
from lmscout.pruning.subnetworks.activations import Moments
from lmscout.statistics.single_pass import only_these_learn

METHODS = ("random", "magnitude", "taylor", "activation", "fluctuation")

UnitScores = dict[tuple[int, str], Tensor]


@dataclass(frozen=True)
class UnitSide:
    """One side of one matrix that follows units.

    Attributes:
        view: [out, in], a view of a parameter, or [out] for a bias.
        rows: whether rows follow the units, else columns do.
        each: rows or columns that one unit has.
    """

    view: Tensor
    rows: bool
    each: int

    def fold(self, values: Tensor) -> Tensor:
        """Sum values of the view's shape over everything that belongs to a unit: [units]."""
        if values.dim() == 2:
            values = values.sum(1 if self.rows else 0)
        return values.view(-1, self.each).sum(1)


def unit_sides(parts: AttentionParts | MlpParts) -> list[UnitSide]:
    """Every side that follows the units of a block's attention or MLP."""
    output = parts.output.weight
    sides = [UnitSide(output, rows=False, each=output.shape[1] // parts.units)]
    for affine in parts.inputs:
        each = affine.weight.shape[0] // parts.units
        sides.append(UnitSide(affine.weight, rows=True, each=each))
        if affine.bias is not None:
            sides.append(UnitSide(affine.bias, rows=True, each=each))
    return sides


def importance(
    method: str,
    model: PreTrainedModel,
    family: Family,
    *,
    windows: Tensor,
    moments: Mapping[tuple[int, str], Moments],
    seed: int = 0,
) -> UnitScores:
    """Score every unit by a method.

    Args:
        method: one of `METHODS`.
        model: the dense model; left as it was found.
        family: its family.
        windows: [windows, T] tokens for the gradient; only "taylor" reads them.
        moments: of calibration activations; only "activation" and "fluctuation" read them.
        seed: of "random".

    Returns:
        (block, kind) -> [units] float64, higher is more important.

    Raises:
        LmscoutError: the method is unknown, or a score is not finite.
    """
    every = [
        ((index, kind), part)
        for index, block in enumerate(family.blocks(model))
        for kind, part in family.parts(block).halves.items()
    ]
    if method == "random":
        generator = torch.Generator().manual_seed(seed)
        scores = {
            place: torch.rand(part.units, generator=generator, dtype=torch.float64)
            for place, part in every
        }
    elif method == "magnitude":
        scores = {place: _sum(part, lambda view: view.double() ** 2) for place, part in every}
    elif method == "taylor":
        scores = _taylor(model, every, windows)
    elif method in ("activation", "fluctuation"):
        scores = {place: _from_moments(method, part, moments[place]) for place, part in every}
    else:
        raise LmscoutError(f"unknown importance {method!r}: expected one of {', '.join(METHODS)}")
    for (block, kind), values in scores.items():
        if not torch.isfinite(values).all():
            raise LmscoutError(
                f"{method} importance of block {block} {kind} is not finite: is the model sound?"
            )
    return scores


def _sum(part: AttentionParts | MlpParts, of: object) -> Tensor:
    assert callable(of)
    folded = [side.fold(of(side.view)) for side in unit_sides(part)]
    return torch.stack(folded).sum(0)


def _from_moments(method: str, part: AttentionParts | MlpParts, moments: Moments) -> Tensor:
    output = unit_sides(part)[0]
    weight = output.view.double()
    if method == "activation":
        return output.fold(weight.abs() * moments.square.double().sqrt())
    return output.fold(weight**2 * moments.variance.double())


def _taylor(
    model: PreTrainedModel,
    every: list[tuple[tuple[int, str], AttentionParts | MlpParts]],
    windows: Tensor,
) -> UnitScores:
    """Fold abs(w g) into unit scores as each gradient arrives, and free it at once."""
    scores = {place: torch.zeros(part.units, dtype=torch.float64) for place, part in every}
    owners = _Owners(model)
    wanted: dict[nn.Parameter, list[tuple[tuple[int, str], UnitSide]]] = {}
    for place, part in every:
        for side in unit_sides(part):
            wanted.setdefault(owners.of(side.view), []).append((place, side))

    def fold(parameter: nn.Parameter) -> None:
        gradient = parameter.grad
        assert gradient is not None
        for place, side in wanted[parameter]:
            # the same window on the gradient as the view is on the parameter
            offset = owners.offset(side.view, parameter)
            window = gradient.as_strided(side.view.shape, side.view.stride(), offset)
            salience = (side.view.float() * window.float()).abs()
            scores[place] += side.fold(salience).double().cpu()
        parameter.grad = None

    with only_these_learn(model, wanted):
        handles = [
            one.register_post_accumulate_grad_hook(fold)  # type: ignore[no-untyped-call]
            for one in wanted
        ]
        try:
            loss = model(windows, labels=windows).loss
            if not torch.isfinite(loss):
                raise LmscoutError(
                    f"the model's loss on calibration text is {loss.item()}: is the model sound?"
                )
            loss.backward()
        finally:
            for handle in handles:
                handle.remove()
    return scores


class _Owners:
    """Finds the parameter that a view looks into, by where it lies in memory."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = sorted(model.parameters(), key=lambda one: one.data_ptr())
        self._starts = [one.data_ptr() for one in self._parameters]

    def of(self, view: Tensor) -> nn.Parameter:
        """The parameter whose memory holds the view's first element."""
        return self._parameters[bisect_right(self._starts, view.data_ptr()) - 1]

    def offset(self, view: Tensor, parameter: nn.Parameter) -> int:
        """How many elements the view begins after the parameter."""
        return (view.data_ptr() - parameter.data_ptr()) // view.element_size()
