"""Sort a model's units by importance, once, in place: after that a plan is prefix lengths."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmscout.pruning.families import Family
from lmscout.pruning.subnetworks.activations import Moments
from lmscout.pruning.subnetworks.importance import UnitScores, unit_sides


@torch.no_grad()
def sort_units(
    model: PreTrainedModel, family: Family, scores: UnitScores
) -> dict[tuple[int, str], Tensor]:
    """Reorder every block's units by falling importance; the model computes the same.

    Ties keep the order in which the units stood.

    Args:
        model: the dense model, changed in place, one matrix at a time.
        family: its family.
        scores: (block, kind) -> [units].

    Returns:
        (block, kind) -> [entries] the order of the vectors that enter the output projection,
        for `reorder_moments`.
    """
    orders = {}
    for index, block in enumerate(family.blocks(model)):
        for kind, part in family.parts(block).halves.items():
            order = torch.argsort(scores[index, kind], descending=True, stable=True)
            for side in unit_sides(part):
                entries = _entries(order, side.each).to(side.view.device)
                axis = 0 if side.rows else 1
                side.view.copy_(side.view.index_select(axis, entries))
            orders[index, kind] = _entries(order, unit_sides(part)[0].each)
    return orders


def reorder_moments(
    moments: Mapping[tuple[int, str], Moments], orders: Mapping[tuple[int, str], Tensor]
) -> dict[tuple[int, str], Moments]:
    """Moments as they would have been collected after `sort_units`."""
    return {place: one.reordered(orders[place]) for place, one in moments.items()}


def _entries(order: Tensor, each: int) -> Tensor:
    """Entry numbers of units that have `each` entries, in the order of the units."""
    return (order[:, None] * each + torch.arange(each)).flatten()
