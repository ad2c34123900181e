"""Importance of units: gradients, the methods, and the order that follows from them.

By how much a loss is multiplied before its backward pass, so that 16 bits hold its gradients.

A mean over thousands of tokens leaves each of them a gradient that float16 rounds coarsely, or to
zero.  Multiplied by a power of two it keeps its digits, and whoever reads it divides again, in
float32.  Types with the range of float32, bfloat16 among them, need none of this: theirs is 1.

Gradients of a dense model's units, block by block, the last block first.

A backward pass that keeps nothing but what enters each block: a block is computed again when
its turn has come, over all of the text in batches, and its gradients are summed, handed out
and freed.  So a model of any size needs room for the gradients of one block, and the sum is
that of a backward pass over all of the text at once.  In float16 they are those of a multiple
of the loss, which falls where a block's overflow.

How much each unit matters: the methods, each a function from a model to unit scores.

- random: a uniform draw, the floor that every method has to beat; it follows from a unit's own
  weights, so that a model whose units are sorted already is given the same order again.
- magnitude: sum of w² over the unit's rows and columns (Han et al., arXiv 1506.02626).
- taylor: sum of abs(w g) over the unit's rows and columns (LLM-Pruner, arXiv 2305.11627).
- activation: sum of abs(w) times the norm of the input, over the unit's output columns (Wanda,
  arXiv 2306.11695).
- fluctuation: sum of w² times the variance of the input, over the unit's output columns (FLAP,
  arXiv 2312.11983).

Sort a model's units by importance, once, in place: after that a plan is prefix lengths.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.pruning.families import Affine, AttentionParts, BlockParts, Family, MlpParts, unit_maps
from lmscout.pruning.moments import BATCH_TOKENS, Moments, Place, half_step, parts_of, retrying_from
from lmscout.statistics.single_pass import train_only

_BELOW_TOKENS = 4  # so that not even tokens that all pull one way come near the largest number
_MOST = 1 << 10
_FALL = 16.0  # when a gradient has overflowed


def loss_scale(dtype: torch.dtype, tokens: int) -> float:
    """The factor of a mean loss.

    Args:
        dtype: of the model's weights.
        tokens: over which the mean is.

    Returns:
        A power of two, at least 1.
    """
    if torch.finfo(dtype).tiny <= torch.finfo(torch.float32).tiny:
        return 1.0
    share = min(max(tokens // _BELOW_TOKENS, 1), _MOST)
    return float(1 << (share.bit_length() - 1))


def lower_scale(scale: float) -> float:
    """The factor to try after one that was too large."""
    return max(1.0, scale / _FALL)


def gradients_by_block(
    model: PreTrainedModel, family: Family, windows: Tensor, *, batch_tokens: int = BATCH_TOKENS
) -> Iterator[tuple[int, BlockParts, float]]:
    """Gradients of the next-token loss with respect to the matrices of every block.

    Args:
        model: the dense model; left as it was found.
        family: its family.
        windows: [windows, T] int64; the loss is the mean over all tokens that are predicted.
        batch_tokens: tokens at once, in whole windows.

    Yields:
        A block's number; its matrices, views of the model's own weights with gradients in
        `grad`; and by what these are to be divided, 1 but in float16.  The last block first.

    Raises:
        LmscoutError: the loss is not finite.
    """
    batches = parts_of(windows.to(model.device), batch_tokens // windows.shape[1])
    with train_only(model, ()):
        entering = [_entering(model, family, batch) for batch in batches]
        predicted = windows.shape[0] * (windows.shape[1] - 1)
        scale = loss_scale(model.dtype, predicted)
        slopes, loss = [], 0.0
        for batch, states in zip(batches, entering, strict=True):
            last = states.pop().requires_grad_()
            part = _loss(model, family, last, batch) / predicted
            (part * scale).backward()  # type: ignore[no-untyped-call]
            assert last.grad is not None
            slopes.append(last.grad)
            loss += part.item()
        if not torch.isfinite(torch.tensor(loss)):
            raise LmscoutError(
                f"the model's loss on calibration text is {loss}: is the model sound?"
            )
        blocks = family.blocks(model)
        for index in reversed(range(len(blocks))):
            states = [batch.pop() for batch in entering]
            parts, before = _backward(model, family, blocks[index], states, slopes)
            while scale > 1 and not _all_finite([*before, *_gradients(parts)]):
                lower = lower_scale(scale)
                slopes = [slope * (lower / scale) for slope in slopes]
                scale = lower
                parts, before = _backward(model, family, blocks[index], states, slopes)
            slopes = before
            yield index, parts, scale


def learning(parts: BlockParts) -> BlockParts:
    """The same matrices as leaves that gather gradients; they share the model's memory."""
    return BlockParts(
        parts.attention.with_maps(map(_leaf, unit_maps(parts.attention))),
        parts.mlp.with_maps(map(_leaf, unit_maps(parts.mlp))),
    )


def run_block(
    family: Family, block: nn.Module, parts: BlockParts, hidden: Tensor, context: object
) -> Tensor:
    """A whole block with the matrices given: [B, T, width] to the same."""
    for part in parts.sublayers.values():
        hidden = half_step(family, block, part, hidden, context)
    return hidden


def _backward(
    model: PreTrainedModel,
    family: Family,
    block: nn.Module,
    states: Iterable[Tensor],
    slopes: Iterable[Tensor],
) -> tuple[BlockParts, list[Tensor]]:
    """A block's matrices with gradients, and the slopes of what enters it, batch by batch."""
    parts, before = learning(family.parts(block)), []
    for state, slope in zip(states, slopes, strict=True):
        hidden = state.detach().requires_grad_()
        leaving = run_block(family, block, parts, hidden, family.context(model, hidden))
        leaving.backward(slope)  # type: ignore[no-untyped-call]
        assert hidden.grad is not None
        before.append(hidden.grad)
    return parts, before


def _gradients(parts: BlockParts) -> Iterator[Tensor]:
    for part in parts.sublayers.values():
        for affine in unit_maps(part):
            for one in (affine.weight, affine.bias):
                if one is not None and one.grad is not None:
                    yield one.grad


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(torch.isfinite(one).all()) for one in tensors)


@torch.no_grad()
def _entering(model: PreTrainedModel, family: Family, batch: Tensor) -> list[Tensor]:
    """What enters each block, and what leaves the last."""
    states = [family.embed(model, batch)]
    context = family.context(model, states[0])
    for block in family.blocks(model):
        states.append(run_block(family, block, family.parts(block), states[-1], context))
    return states


def _loss(model: PreTrainedModel, family: Family, hidden: Tensor, batch: Tensor) -> Tensor:
    """The negative log-likelihood of a batch, summed over the tokens predicted."""
    logits = family.logits(model, hidden[:, :-1]).flatten(0, 1)
    return functional.cross_entropy(logits.float(), batch[:, 1:].flatten(), reduction="sum")


def _leaf(affine: Affine) -> Affine:
    weight = affine.weight.detach().requires_grad_()
    bias = None if affine.bias is None else affine.bias.detach().requires_grad_()
    return Affine(weight, bias)


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
        scores = retrying_from(taylor, BATCH_TOKENS // windows.shape[1], model.device)
    elif method in ("random", "magnitude"):
        scores = {
            place: _drawn(place, part, seed) if method == "random" else _sum_of_squares(part)
            for place, part in family.all_sublayers(model).items()
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
        for kind, part in parts.sublayers.items():
            folded = []
            for side in unit_sides(part):
                gradient = side.view.grad
                assert gradient is not None
                salience = (side.view.detach().float() * gradient.float()).abs()
                folded.append(side.fold(salience).double().cpu())
            scores[index, kind] = torch.stack(folded).sum(0) / scale
    return dict(sorted(scores.items()))


@torch.no_grad()
def sort_sublayer(part: AttentionParts | MlpParts, scores: Tensor) -> Tensor:
    """Reorder the units of a block's attention or MLP by falling importance, in place.

    The model computes the same.  Ties keep the order in which the units stood.

    Args:
        part: its matrices, views of the model's own weights, changed one at a time.
        scores: [units].

    Returns:
        [entries] the order of the vectors that enter the output projection, for
        `Moments.reordered`.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    for side in unit_sides(part):
        entries = _entries(order, side.each).to(side.view.device)
        side.view.copy_(side.view.index_select(0 if side.rows else 1, entries))
    return _entries(order, unit_sides(part)[0].each)


def _entries(order: Tensor, each: int) -> Tensor:
    """Entry numbers of units that have `each` entries, in the order of the units."""
    return (order[:, None] * each + torch.arange(each)).flatten()
