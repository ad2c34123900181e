"""How much each unit matters: the methods, each a function from a model to unit scores.

- random: a uniform draw, the floor that every method has to beat; it follows from a unit's own
  weights, so that a model whose units are sorted already is given the same order again.
- magnitude: sum of w² over the unit's rows and columns (Han et al., arXiv 1506.02626).
- taylor: sum of abs(w g) over the unit's rows and columns (LLM-Pruner, arXiv 2305.11627).
- activation: sum of abs(w) times the norm of the input, over the unit's output columns (Wanda,
  arXiv 2306.11695).
- fluctuation: sum of w² times the variance of the input, over the unit's output columns (FLAP,
  arXiv 2312.11983).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.pruning.families import AttentionParts, Family, MlpParts
from lmscout.pruning.subnetworks.activations import BATCH_TOKENS, Moments, Place
from lmscout.pruning.subnetworks.gradients import gradients_by_block
from lmscout.pruning.subnetworks.halving import halving_from

METHODS = ("random", "magnitude", "taylor", "activation", "fluctuation")
FROM_MOMENTS = ("activation", "fluctuation")  # of these methods

UnitScores = dict[Place, Tensor]


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

    def by_unit(self) -> Tensor:
        """All that belongs to a unit: [units, n]."""
        rows = self.view if self.rows else self.view.T
        return rows.reshape(len(rows) // self.each, -1)


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
    seed: int = 0,
) -> UnitScores:
    """Score every unit by a method that reads weights, or gradients.

    Args:
        method: one of `METHODS`, but those `FROM_MOMENTS`.
        model: the dense model; left as it was found.
        family: its family.
        windows: [windows, T] tokens for the gradient; only "taylor" reads them.
        seed: of "random".

    Returns:
        (block, kind) -> [units] float64, higher is more important.

    Raises:
        LmscoutError: the method is unknown, or a score is not finite.
    """
    if method == "taylor":
        taylor = partial(_taylor, model, family, windows)
        scores = halving_from(taylor, BATCH_TOKENS // windows.shape[1], model.device)
    elif method in ("random", "magnitude"):
        scores = {
            place: _drawn(place, part, seed) if method == "random" else _sum_of_squares(part)
            for place, part in family.all_halves(model).items()
        }
    else:
        raise LmscoutError(f"unknown importance {method!r}: expected one of {', '.join(METHODS)}")
    for place, values in scores.items():
        check_finite(method, place, values)
    return scores


def importance_from_moments(
    method: str, place: Place, part: AttentionParts | MlpParts, moments: Moments
) -> Tensor:
    """Score the units of one block's attention or MLP by what flows through them.

    Args:
        method: one of `FROM_MOMENTS`.
        place: which block, and which half, for the error.
        part: its matrices.
        moments: of what enters its output projection.

    Returns:
        [units] float64, higher is more important.

    Raises:
        LmscoutError: a score is not finite.
    """
    output = unit_sides(part)[0]
    weight = output.view.double()
    if method == "activation":
        values = output.fold(weight.abs() * moments.square.double().sqrt())
    else:
        values = output.fold(weight**2 * moments.variance.double())
    check_finite(method, place, values)
    return values.cpu()


def check_finite(method: str, place: Place, values: Tensor) -> None:
    """Refuse scores that say nothing.

    Raises:
        LmscoutError: one is not finite.
    """
    if not torch.isfinite(values).all():
        raise LmscoutError(
            f"{method} importance of block {place[0]} {place[1]} is not finite: is the model sound?"
        )


def _drawn(place: Place, part: AttentionParts | MlpParts, seed: int) -> Tensor:
    """Numbers in [0, 1), each from a digest of the seed, the place and a unit's weights."""
    sides = [
        side.by_unit().detach().contiguous().view(torch.uint8).cpu().numpy()
        for side in unit_sides(part)
    ]
    drawn = []
    for unit in range(part.units):
        digest = hashlib.blake2b(f"{seed} {place}".encode(), digest_size=8)
        for side in sides:
            digest.update(side[unit].tobytes())
        drawn.append((int.from_bytes(digest.digest(), "big") >> 11) * 2.0**-53)
    return torch.tensor(drawn, dtype=torch.float64)


def _sum_of_squares(part: AttentionParts | MlpParts) -> Tensor:
    folded = [side.fold(side.view.double() ** 2) for side in unit_sides(part)]
    return torch.stack(folded).sum(0).cpu()


def _taylor(model: PreTrainedModel, family: Family, windows: Tensor, size: int) -> UnitScores:
    """Fold abs(w g) into unit scores, block by block, and free the gradients at once."""
    scores: UnitScores = {}
    tokens = size * windows.shape[1]
    for index, parts, scale in gradients_by_block(model, family, windows, batch_tokens=tokens):
        for kind, part in parts.halves.items():
            folded = []
            for side in unit_sides(part):
                gradient = side.view.grad
                assert gradient is not None
                salience = (side.view.detach().float() * gradient.float()).abs()
                folded.append(side.fold(salience).double().cpu())
            scores[index, kind] = torch.stack(folded).sum(0) / scale
    return dict(sorted(scores.items()))
