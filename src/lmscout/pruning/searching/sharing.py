"""Plans that begin alike: the evaluator computes what they share once.

A model is computed block by block, attention first, so two plans share the computation of
all steps before the first at which they keep different numbers of units.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lmscout.pruning.searching.breeding import Predict
from lmscout.pruning.searching.budgets import Budget
from lmscout.pruning.searching.ranges import Ranges, fit, meets
from lmscout.pruning.searching.search import DISTANCE
from lmscout.pruning.subnetworks.plan import Plan, Shape
from lmscout.pruning.subnetworks.plan_arrays import (
    Rows,
    as_plans,
    as_rows,
    dense_row,
    in_block_order,
)


def order_for_prefix_sharing(plans: Sequence[Plan]) -> list[Plan]:
    """The same plans, those that begin alike side by side.

    Sorted like words, with steps for letters: of all orders, this shares the most steps
    between neighbours.
    """
    return [plans[place] for place in sharing_order(as_rows(plans))]


def sharing_order(rows: Rows) -> list[int]:
    """Places of rows [n, 2L] in the order of `order_for_prefix_sharing`."""
    if not len(rows):
        return []
    return [int(place) for place in np.lexsort(in_block_order(rows).T[::-1])]


def shared_share(plans: Sequence[Plan]) -> float:
    """Mean share of a plan's steps that the plan before it has in common, 0 to 1."""
    if not plans:
        return 0.0
    steps = in_block_order(as_rows(plans))
    alike = np.minimum.accumulate(steps[1:] == steps[:-1], axis=1).sum()
    return float(alike / steps.size)


def families(
    wanted: npt.NDArray[np.float64], ranges: Ranges, budget: Budget, *, size: int = 4
) -> Rows:
    """Fit plans so that every few of them begin with the same blocks.

    The first of `size` rows is fitted freely; the others take its first half of the blocks
    and fit their own second half, where that can meet the budget.

    Args:
        wanted: [n, 2L] units, in families one after the other.
        ranges: within which plans lie.
        budget: that they meet.
        size: plans a family; 1 leaves every plan by itself.

    Returns:
        [n, 2L].
    """
    rows = fit(wanted, ranges, budget)
    first = np.arange(len(rows)) // size * size
    depth = rows.shape[1] // 2
    begun = np.tile(np.arange(depth) < depth // 2, 2)
    low, high = as_rows([ranges.low, ranges.high])
    lead = rows[first]
    together = fit(
        np.where(begun, lead, wanted),
        (np.where(begun, lead, low), np.where(begun, lead, high)),
        budget,
    )
    return np.where(meets(together, budget)[:, None], together, rows)


def share_prefixes(
    plans: Sequence[Plan],
    predict: Predict,
    shape: Shape,
    ranges: Ranges,
    budget: Budget,
    *,
    tolerance: float,
    taken: Sequence[Plan] = (),
    distance: float = DISTANCE,
) -> list[Plan]:
    """Give plans the first blocks of plans before them, where the prediction allows.

    Each plan in turn is offered the first blocks, up to half of them, of every plan kept so
    far; its other blocks are fitted to the budget anew.  It takes the longest beginning with
    which it is predicted to rise by no more than `tolerance` above what it was.

    Args:
        plans: distinct, best first.
        predict: rises of plans, [n, 2L] to [n].
        shape: of the dense model.
        ranges: within which plans lie.
        budget: that they meet.
        tolerance: nats a token.
        taken: plans that no result may equal.
        distance: least mean difference of kept shares between a changed plan and others.

    Returns:
        As many plans, distinct, in the same order.
    """
    if len(plans) < 2 or shape.depth < 2:
        return list(plans)
    rows = as_rows(plans)
    rises = predict(rows)
    units, depth = dense_row(shape), shape.depth
    low, high = as_rows([ranges.low, ranges.high])
    others = as_rows([*plans, *taken])
    lengths = np.arange(depth // 2, 0, -1)
    kept = rows[:1]
    for row, rise in zip(rows[1:], rises[1:], strict=True):
        donors = np.repeat(np.arange(len(kept)), len(lengths))
        length = np.tile(lengths, len(kept))
        begun = np.tile(np.arange(depth) < length[:, None], 2)
        wanted = np.where(begun, kept[donors], row)
        grafts = fit(wanted, (np.where(begun, wanted, low), np.where(begun, wanted, high)), budget)
        good = (predict(grafts) <= rise + tolerance) & meets(grafts, budget)
        chosen = row
        for place in np.flatnonzero(good)[np.argsort(-length[good], kind="stable")]:
            graft = grafts[place]
            apart = np.abs((kept - graft) / units).mean(axis=1).min() >= distance
            if apart and not (others == graft).all(axis=1).any():
                chosen = graft
                break
        kept = np.concatenate([kept, chosen[None]])
    return as_plans(kept)
