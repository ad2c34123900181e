"""Sort a model's units by importance, once, in place: after that a plan is prefix lengths."""

from __future__ import annotations

import torch
from torch import Tensor

from lmscout.pruning.families import AttentionParts, MlpParts
from lmscout.pruning.subnetworks.importance import unit_sides


@torch.no_grad()
def sort_half(part: AttentionParts | MlpParts, scores: Tensor) -> Tensor:
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
