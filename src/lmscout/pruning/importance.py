"""Importance of units, and the sorting of units by it.

The methods are

- random: a uniform draw, the lower bound for every method.  It follows from a unit's own
  weights, so a model whose units are sorted already gets the same order again.
- magnitude: sum of w² over the unit's rows and columns (Han et al., arXiv 1506.02626).
- taylor: sum of abs(w g) over the unit's rows and columns (LLM-Pruner, arXiv 2305.11627).
- activation: sum of abs(w) times the norm of the input, over the unit's output columns (Wanda,
  arXiv 2306.11695).
- fluctuation: sum of w² times the variance of the input, over the unit's output columns (FLAP,
  arXiv 2312.11983).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.pruning.families import BlockParts, Family, Place, Sublayer
from lmscout.pruning.moments import BATCH_TOKENS, Moments, batches_of, retry_with_half_batch
from lmscout.statistics.single_pass import train_only

METHODS = ("random", "magnitude", "taylor", "activation", "fluctuation")
FROM_MOMENTS = ("activation", "fluctuation")  # methods that use moments of activations

UnitScores = dict[Place, Tensor]

_TOKENS_PER_SCALE = 4  # so that tokens whose gradients all add up stay in float16's range
_LARGEST_SCALE = 1 << 10
_SCALE_DECREASE = 16.0  # after an overflow


def loss_scale(dtype: torch.dtype, tokens: int) -> float:
    """Factor of a mean loss with which gradients in `dtype` keep their precision.

    A mean over thousands of tokens gives each token a gradient that float16 rounds coarsely or to
    zero.  Gradients of the scaled loss are divided by the factor in float32.  It is a power of
    two, and 1 for types with the range of float32.
    """
    if torch.finfo(dtype).tiny <= torch.finfo(torch.float32).tiny:
        return 1.0
    largest = min(max(tokens // _TOKENS_PER_SCALE, 1), _LARGEST_SCALE)
    return float(1 << (largest.bit_length() - 1))


def lower_scale(scale: float) -> float:
    """The factor to try after one with which a gradient has overflowed."""
    return max(1.0, scale / _SCALE_DECREASE)


def gradients_by_block(
    model: PreTrainedModel, family: Family, windows: Tensor, *, batch_tokens: int = BATCH_TOKENS
) -> Iterator[tuple[int, BlockParts, float]]:
    """Gradients of the next-token loss with respect to the matrices of every block.

    The loss is the mean over all tokens of `windows` [windows, T] that are predicted.  Only the
    hidden state that enters each block is kept.  A block is computed again for its backward pass,
    over all text in batches, and its gradients are freed after they were yielded: memory is needed
    for the gradients of one block.

    Yields:
        The last block first: its number; its matrices, views of the model's own weights with
        gradients in `grad`; and the loss scale of these, 1 but in float16.

    Raises:
        LmscoutError: the loss is not finite.
    """
    batches = batches_of(windows.to(model.device), batch_tokens // windows.shape[1])
    with train_only(model, ()):
        entering = [_entering(model, family, batch) for batch in batches]
        predicted = windows.shape[0] * (windows.shape[1] - 1)
        scale = loss_scale(model.dtype, predicted)
        gradients, loss = [], 0.0
        for batch, states in zip(batches, entering, strict=True):
            last = states.pop().requires_grad_()
            part = _loss(model, family, last, batch) / predicted
            (part * scale).backward()  # type: ignore[no-untyped-call]
            assert last.grad is not None
            gradients.append(last.grad)
            loss += part.item()
        if not math.isfinite(loss):
            raise LmscoutError(
                f"the model's loss on calibration text is {loss}: is the model sound?"
            )
        blocks = family.all_parts(model)
        for index in reversed(range(len(blocks))):
            states = [batch.pop() for batch in entering]
            parts, before = _backward(model, family, blocks[index], states, gradients)
            while scale > 1 and not _all_finite([*before, *_weight_gradients(parts)]):
                lower = lower_scale(scale)
                gradients = [gradient * (lower / scale) for gradient in gradients]
                scale = lower
                parts, before = _backward(model, family, blocks[index], states, gradients)
            gradients = before
            yield index, parts, scale


def _backward(
    model: PreTrainedModel,
    family: Family,
    block: BlockParts,
    states: Iterable[Tensor],
    gradients: Iterable[Tensor],
) -> tuple[BlockParts, list[Tensor]]:
    """A block's matrices with gradients, and the gradients of what enters it, by batch."""
    leaves = BlockParts(
        block.attention.with_maps(one.as_leaf() for one in block.attention.maps),
        block.mlp.with_maps(one.as_leaf() for one in block.mlp.maps),
    )
    before = []
    for state, gradient in zip(states, gradients, strict=True):
        hidden = state.detach().requires_grad_()
        leaving = _run_block(leaves, hidden, family.context(model, hidden))
        leaving.backward(gradient)  # type: ignore[no-untyped-call]
        assert hidden.grad is not None
        before.append(hidden.grad)
    return leaves, before


def _run_block(parts: BlockParts, hidden: Tensor, context: object) -> Tensor:
    for sublayer in parts.sublayers.values():
        hidden = sublayer.step(hidden, context)
    return hidden


def _weight_gradients(parts: BlockParts) -> Iterator[Tensor]:
    for sublayer in parts.sublayers.values():
        for affine in sublayer.maps:
            for one in (affine.weight, affine.bias):
                if one is not None and one.grad is not None:
                    yield one.grad


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(torch.isfinite(one).all()) for one in tensors)


@torch.no_grad()
def _entering(model: PreTrainedModel, family: Family, batch: Tensor) -> list[Tensor]:
    """The hidden states that enter each block, and the one after the last."""
    states = [family.embed(model, batch)]
    context = family.context(model, states[0])
    for parts in family.all_parts(model):
        states.append(_run_block(parts, states[-1], context))
    return states


def _loss(model: PreTrainedModel, family: Family, hidden: Tensor, batch: Tensor) -> Tensor:
    """Negative log-likelihood of a batch, summed over the predicted tokens."""
    logits = family.logits(model, hidden[:, :-1]).flatten(0, 1)
    return functional.cross_entropy(logits.float(), batch[:, 1:].flatten(), reduction="sum")


@dataclass(frozen=True)
class UnitSide:
    """Rows or columns of one matrix that follow the units.

    Attributes:
        view: [out, in], a view of a parameter, or [out] for a bias.
        rows: whether rows follow the units, not columns.
        each: rows or columns of one unit.
    """

    view: Tensor
    rows: bool
    each: int

    def fold(self, values: Tensor) -> Tensor:
        """Sum values of the view's shape over each unit: [units]."""
        if values.dim() == 2:
            values = values.sum(1 if self.rows else 0)
        return values.view(-1, self.each).sum(1)

    def by_unit(self) -> Tensor:
        """The numbers of each unit, [units, n]."""
        rows = self.view if self.rows else self.view.T
        return rows.reshape(len(rows) // self.each, -1)


def unit_sides(sublayer: Sublayer) -> list[UnitSide]:
    """Every side that follows the units of a sublayer, that of the output projection first."""
    output = sublayer.output.weight
    sides = [UnitSide(output, rows=False, each=output.shape[1] // sublayer.units)]
    for affine in sublayer.inputs:
        each = len(affine.weight) // sublayer.units
        sides += [
            UnitSide(one, rows=True, each=each)
            for one in (affine.weight, affine.bias)
            if one is not None
        ]
    return sides


def importance(
    method: str, model: PreTrainedModel, family: Family, *, windows: Tensor, seed: int = 0
) -> UnitScores:
    """Score every unit by a method that is not in `FROM_MOMENTS`; the model stays as it is.

    Args:
        method: "random", "magnitude" or "taylor".
        model: the dense model.
        family: its family.
        windows: [windows, T] int64 tokens for the gradient of "taylor".
        seed: of "random".

    Returns:
        (block, kind) -> [units] float64, higher is more important.

    Raises:
        LmscoutError: the method is unknown, or a score is not finite.
    """
    if method == "taylor":
        taylor = partial(_taylor, model, family, windows)
        scores = retry_with_half_batch(taylor, BATCH_TOKENS // windows.shape[1], model.device)
    elif method in ("random", "magnitude"):
        scores = {
            place: _random(place, one, seed) if method == "random" else _magnitude(one)
            for place, one in family.all_sublayers(model).items()
        }
    else:
        raise LmscoutError(f"unknown importance {method!r}: expected one of {', '.join(METHODS)}")
    for place, values in scores.items():
        _check_finite(method, place, values)
    return scores


def importance_from_moments(
    method: str, place: Place, sublayer: Sublayer, moments: Moments
) -> Tensor:
    """Score the units of one sublayer by a method of `FROM_MOMENTS`: [units] float64.

    Raises:
        LmscoutError: a score is not finite.
    """
    output = unit_sides(sublayer)[0]
    weight = output.view.double()
    if method == "activation":
        values = output.fold(weight.abs() * moments.square.double().sqrt())
    else:
        values = output.fold(weight**2 * moments.variance.double())
    _check_finite(method, place, values)
    return values.cpu()


def _check_finite(method: str, place: Place, values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise LmscoutError(
            f"{method} importance of block {place[0]} {place[1]} is not finite: is the model sound?"
        )


def _random(place: Place, sublayer: Sublayer, seed: int) -> Tensor:
    """Numbers in [0, 1), each from a digest of the seed, the place and a unit's weights."""
    sides = [
        side.by_unit().detach().contiguous().view(torch.uint8).cpu().numpy()
        for side in unit_sides(sublayer)
    ]
    values = []
    for unit in range(sublayer.units):
        digest = hashlib.blake2b(f"{seed} {place}".encode(), digest_size=8)
        for side in sides:
            digest.update(side[unit].tobytes())
        values.append((int.from_bytes(digest.digest(), "big") >> 11) * 2.0**-53)
    return torch.tensor(values, dtype=torch.float64)


def _magnitude(sublayer: Sublayer) -> Tensor:
    folded = [side.fold(side.view.double() ** 2) for side in unit_sides(sublayer)]
    return torch.stack(folded).sum(0).cpu()


def _taylor(model: PreTrainedModel, family: Family, windows: Tensor, size: int) -> UnitScores:
    """Sums of abs(w g) by unit, block by block, so that gradients are freed at once."""
    scores: UnitScores = {}
    tokens = size * windows.shape[1]
    for index, parts, scale in gradients_by_block(model, family, windows, batch_tokens=tokens):
        for kind, sublayer in parts.sublayers.items():
            folded = []
            for side in unit_sides(sublayer):
                gradient = side.view.grad
                assert gradient is not None
                salience = (side.view.detach().float() * gradient.float()).abs()
                folded.append(side.fold(salience).double().cpu())
            scores[index, kind] = torch.stack(folded).sum(0) / scale
    return dict(sorted(scores.items()))


@torch.no_grad()
def sort_sublayer(sublayer: Sublayer, scores: Tensor) -> Tensor:
    """Sort the units of a sublayer by falling importance, in place.

    The model computes the same.  Units of equal importance keep their order.  Returns the new
    order of what enters the output projection, [entries], for `Moments.reordered`.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    sides = unit_sides(sublayer)
    for side in sides:
        entries = _entries(order, side.each).to(side.view.device)
        side.view.copy_(side.view.index_select(0 if side.rows else 1, entries))
    return _entries(order, sides[0].each)


def _entries(order: Tensor, each: int) -> Tensor:
    """Entry numbers of units of `each` entries, in the order of the units."""
    return (order[:, None] * each + torch.arange(each)).flatten()
