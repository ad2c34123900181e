"""Gradients of a dense model's units, block by block, the last block first.

A backward pass that keeps nothing but what enters each block: a block is computed again when
its turn has come, over all of the text in batches, and its gradients are summed, handed out
and freed.  So a model of any size needs room for the gradients of one block, and the sum is
that of a backward pass over all of the text at once.  In float16 they are those of a multiple
of the loss, which falls where a block's overflow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.pruning.families import Affine, BlockParts, Family, unit_maps
from lmscout.pruning.subnetworks.activations import BATCH_TOKENS, half_step, parts_of
from lmscout.pruning.subnetworks.loss_scale import loss_scale, lower_scale
from lmscout.statistics.single_pass import only_these_learn


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
    with only_these_learn(model, ()):
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
    for part in parts.halves.values():
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
    for part in parts.halves.values():
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
