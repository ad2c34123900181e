"""Importance of units, and the sorting of units by it.

The methods are

- random: a uniform draw, the lower bound for every method.  It follows from a unit's own
  weights, so a model whose units are sorted already gets the same order again.
- magnitude: sum of w² over the unit's rows and columns (Han et al., arXiv 1506.02626).
- taylor: sum of abs(w g) over the unit's rows and columns (LLM-Pruner, arXiv 2305.11627).
- activation: sum of abs(w) times the norm of the input, over the unit's output columns (Wanda,
  arXiv 2306.11695); of experts, the router-weighted norm of their outputs (see `experts`).
- obs: Optimal Brain Surgeon in the metric of the loss; see `removal`.
- fluctuation: sum of w² times the variance of the input, over the unit's output columns (FLAP,
  arXiv 2312.11983).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.pruning.families import (
    ATTENTION,
    MLP,
    BlockParts,
    ExpertChannels,
    Family,
    Place,
    Sublayer,
)
from lmscout.pruning.moments import BATCH_TOKENS, Moments, batches_of, retry_with_half_batch
from lmscout.statistics.single_pass import train_only

OBS = "obs"
METHODS = (OBS, "taylor", "magnitude", "activation", "fluctuation", "random")
FROM_MOMENTS = ("activation", "fluctuation")  # methods that use moments of activations

UnitScores = dict[Place, Tensor]


@dataclass(frozen=True)
class UnitOrder:
    """The units of a sublayer, the most important first."""

    order: Tensor  # [units] numbers of units; [experts, channels] of channels within experts
    scores: Tensor  # [units] float64, the importance of each, in this order

    @classmethod
    def falling(cls, scores: Tensor) -> UnitOrder:
        """By falling scores [units]; units of equal scores keep their order."""
        values, order = scores.sort(descending=True, stable=True)
        return cls(order, values)

    @classmethod
    def of_members(cls, sublayer: Sublayer, orders: Sequence[UnitOrder]) -> UnitOrder:
        """From the orders of the members of a sublayer."""
        if not isinstance(sublayer, ExpertChannels):
            return orders[0]
        scores = torch.stack([one.scores for one in orders]).view(len(orders), sublayer.units, -1)
        return cls(torch.stack([one.order for one in orders]), scores.sum((0, 2)))


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


@dataclass(frozen=True)
class BlockGradients:
    """Gradients of one block."""

    index: int  # number of the block
    parts: BlockParts  # its matrices, views of the model's own weights with gradients in `grad`
    # by kind, the gradients with respect to what the sublayer adds to the hidden state, [windows,
    # T, width] of each batch
    outputs: Mapping[str, Sequence[Tensor]]
    scale: float  # loss scale of the gradients, 1 but in float16


def gradients_by_block(
    model: PreTrainedModel, family: Family, windows: Tensor, *, batch_tokens: int = BATCH_TOKENS
) -> Iterator[BlockGradients]:
    """Gradients of the next-token loss with respect to matrices and outputs of every block.

    The loss is the mean over all tokens of `windows` [windows, T] that are predicted.  Only the
    hidden state that enters each block is kept.  A block is computed again for its backward pass,
    over all text in batches, and its gradients are freed after they were yielded: memory is needed
    for the gradients of one block.

    Yields:
        The last block first.

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
            parts, between, before = _backward(model, family, blocks[index], states, gradients)
            while scale > 1 and not _all_finite(parts, before):
                lower = lower_scale(scale)
                gradients = [gradient * (lower / scale) for gradient in gradients]
                scale = lower
                parts, between, before = _backward(model, family, blocks[index], states, gradients)
            yield BlockGradients(index, parts, {ATTENTION: between, MLP: gradients}, scale)
            gradients = before


def _backward(
    model: PreTrainedModel,
    family: Family,
    block: BlockParts,
    states: Iterable[Tensor],
    gradients: Iterable[Tensor],
) -> tuple[BlockParts, list[Tensor], list[Tensor]]:
    """A block's matrices with gradients, and by batch the gradients after attention and before."""
    leaves = BlockParts(block.attention.as_leaves(), block.mlp.as_leaves())
    between, before = [], []
    for state, gradient in zip(states, gradients, strict=True):
        entering = state.detach().requires_grad_()
        context = family.context(model, entering)
        middle = leaves.attention.step(entering, context)
        middle.retain_grad()
        leaves.mlp.step(middle, context).backward(gradient)  # type: ignore[no-untyped-call]
        assert middle.grad is not None
        assert entering.grad is not None
        between.append(middle.grad)
        before.append(entering.grad)
    return leaves, between, before


def _run_block(parts: BlockParts, hidden: Tensor, context: object) -> Tensor:
    for sublayer in parts.sublayers.values():
        hidden = sublayer.step(hidden, context)
    return hidden


def _all_finite(parts: BlockParts, gradients: Iterable[Tensor]) -> bool:
    """Whether the gradients of a block's matrices, and the others given, are finite."""
    tensors = (
        tensor.grad
        for sublayer in parts.sublayers.values()
        for tensor in sublayer.tensors
        if tensor.grad is not None
    )
    return all(bool(torch.isfinite(one).all()) for one in (*gradients, *tensors))


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
    targets = batch[:, 1:].flatten().to(logits.device)
    return functional.cross_entropy(logits.float(), targets, reduction="sum")


def _sum_by_unit(values: Tensor) -> Tensor:
    """Sum [units, entries, ...] over all but units."""
    return (values.sum(2) if values.dim() > 2 else values).sum(1)


def importance(
    method: str, model: PreTrainedModel, family: Family, *, windows: Tensor, seed: int = 0
) -> UnitScores:
    """Score every unit by "random", "magnitude" or "taylor"; the model stays as it is.

    The gradient of "taylor" is on tokens [windows, T] int64; the seed is of "random".

    Returns:
        (block, kind) -> [units] float64, higher is more important; [experts, channels] of channels
        within experts; nothing without units.

    Raises:
        LmscoutError: a score is not finite.
    """
    if method == "taylor":
        taylor = partial(_taylor, model, family, windows)
        scores = retry_with_half_batch(taylor, BATCH_TOKENS // windows.shape[1], model.device)
    elif method in ("random", "magnitude"):
        random = method == "random"
        scores = {
            place: _of_members(
                one,
                [
                    _random(place, each, seed) if random else _magnitude(each)
                    for each in one.members
                ],
            )
            for place, one in family.all_sublayers(model).items()
            if one.units
        }
    else:
        raise LmscoutError(f"unknown importance {method!r}: expected one of {', '.join(METHODS)}")
    for place, values in scores.items():
        _check_finite(method, place, values)
    return scores


def importance_from_moments(
    method: str, place: Place, sublayer: Sublayer, moments: Moments
) -> Tensor:
    """Score the units of a sublayer without members by a method of `FROM_MOMENTS`: [units] float64.

    Raises:
        LmscoutError: a score is not finite.
    """
    weight = sublayer.views()[0].double()
    if method == "activation":
        weight, factor = weight.abs(), moments.square.double().sqrt()
    else:
        weight, factor = weight**2, moments.variance.double()
    values = _sum_by_unit(weight * factor.view(sublayer.units, -1, 1))
    _check_finite(method, place, values)
    return values.cpu()


def _check_finite(method: str, place: Place, values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise LmscoutError(
            f"{method} importance of block {place[0]} {place[1]} is not finite: is the model sound?"
        )


def _random(place: Place, sublayer: Sublayer, seed: int) -> Tensor:
    """Numbers in [0, 1), each from a digest of the seed, the place and a unit's weights."""
    views = [
        view.flatten(1).detach().contiguous().view(torch.uint8).cpu().numpy()
        for view in sublayer.views()
    ]
    values = []
    for unit in range(sublayer.units):
        digest = hashlib.blake2b(f"{seed} {place}".encode(), digest_size=8)
        for view in views:
            digest.update(view[unit].tobytes())
        values.append((int.from_bytes(digest.digest(), "big") >> 11) * 2.0**-53)
    return torch.tensor(values, dtype=torch.float64)


def _magnitude(sublayer: Sublayer) -> Tensor:
    sums = [_sum_by_unit(view.double() ** 2) for view in sublayer.views()]
    return torch.stack(sums).sum(0).cpu()


def loss_metrics(
    model: PreTrainedModel, family: Family, windows: Tensor, *, in_host: bool = False
) -> dict[Place, Tensor]:
    """The metric of the loss at the output of every sublayer, on tokens [windows, T] int64.

    Returns:
        (block, kind) -> M = E[g gᵀ], [width, width] in float32, the mean over tokens, where g is
        the gradient of the summed loss with respect to the output at a token.  Through a norm
        behind the output it is taken with each token's divisor held fixed, which is in `Moments`:
        by the norm's own gradient, removing all of a sublayer would cost nothing.  With `in_host`
        they are in the host's memory.

    Raises:
        LmscoutError: the loss is not finite, or memory does not suffice.
    """
    collect = partial(_metrics, model, family, windows, in_host)
    return retry_with_half_batch(collect, BATCH_TOKENS // windows.shape[1], model.device)


def _metrics(
    model: PreTrainedModel, family: Family, windows: Tensor, in_host: bool, size: int
) -> dict[Place, Tensor]:
    tokens = size * windows.shape[1]
    predicted = windows.shape[0] * (windows.shape[1] - 1)
    metrics: dict[Place, Tensor] = {}
    for block in gradients_by_block(model, family, windows, batch_tokens=tokens):
        for kind, gradients in block.outputs.items():
            after = block.parts.sublayers[kind].after
            width = gradients[0].shape[-1]
            total = gradients[0].new_zeros(width, width, dtype=torch.float32)
            for gradient in gradients:
                each = gradient.flatten(0, 1).float() * (predicted / block.scale)
                each = each if after is None else each * after.gain
                total.addmm_(each.T, each)
            metric = total / windows.numel()
            metrics[block.index, kind] = metric.cpu() if in_host else metric
    return metrics


def _taylor(model: PreTrainedModel, family: Family, windows: Tensor, size: int) -> UnitScores:
    """Sums of abs(w g) by unit, block by block, so that gradients are freed at once."""
    scores: UnitScores = {}
    tokens = size * windows.shape[1]
    for block in gradients_by_block(model, family, windows, batch_tokens=tokens):
        for kind, sublayer in block.parts.sublayers.items():
            if not sublayer.units:
                continue
            gradients = sublayer.changed(_gradient).members
            found = [
                _taylor_of(*both) / block.scale
                for both in zip(sublayer.members, gradients, strict=True)
            ]
            scores[block.index, kind] = _of_members(sublayer, found)
    return dict(sorted(scores.items()))


def _taylor_of(sublayer: Sublayer, gradients: Sublayer) -> Tensor:
    sums = [
        _sum_by_unit((view.detach().float() * gradient.float()).abs()).double().cpu()
        for view, gradient in zip(sublayer.views(), gradients.views(), strict=True)
    ]
    return torch.stack(sums).sum(0)


def _of_members(sublayer: Sublayer, scores: list[Tensor]) -> Tensor:
    """Scores [experts, channels] of channels within experts, else those of the only member."""
    return torch.stack(scores) if isinstance(sublayer, ExpertChannels) else scores[0]


@torch.no_grad()
def sort_sublayer(sublayer: Sublayer, order: Tensor) -> Tensor:
    """Sort the units of a sublayer, in place, into an order [units], or one of each expert.

    The model computes the same.  Returns the new order of what enters the output projection,
    [entries] or [experts, entries], for `Moments.reordered`.
    """
    order = order.cpu()
    if isinstance(sublayer, ExpertChannels):
        both = zip(sublayer.members, order, strict=True)
        return torch.stack([sort_sublayer(one, own) for one, own in both])
    for view in sublayer.views():
        view.copy_(view.index_select(0, order.to(view.device)))
    entries = torch.arange(sublayer.output.weight.shape[1])  # none of experts
    return entries.view(sublayer.units, -1)[order].flatten()


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad
