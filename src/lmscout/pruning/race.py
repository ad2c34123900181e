"""The race that plans run with the best of their size: far behind, they are dropped early."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmscout.pruning.ledger import Pair
from lmscout.pruning.searching.budgets import Budget
from lmscout.pruning.searching.space import PlanSpace
from lmscout.pruning.subnetworks.plan import Plan
from lmscout.pruning.subnetworks.plan_arrays import as_rows

_HOPEFUL = 12  # a plan that is not among so many of its size, as far as measured, is dropped
_ERRORS = 1.0  # standard errors of what a portion foretells of the whole, as room for a plan


def limits(
    plans: Sequence[Plan], pairs: Sequence[Pair], space: PlanSpace, budgets: Sequence[Budget]
) -> list[tuple[float, ...]]:
    """For each plan the rises, portion by portion, above which it is dropped.

    Args:
        plans: to be measured.
        pairs: of which plans have to be among the best.
        space: in which plans lie.
        budgets: sizes that are sought; a plan races with pairs of the first that it meets.

    Returns:
        One a plan; empty where it meets none, or too few pairs do.
    """
    if not plans:
        return []
    rows = as_rows(plans)
    of_size = [space.meets(rows, budget) for budget in budgets]
    each = [_limits(pairs, space, budget) for budget in budgets]
    return [
        next((most for most, met in zip(each, of_size, strict=True) if met[place]), ())
        for place in range(len(plans))
    ]


def _limits(pairs: Sequence[Pair], space: PlanSpace, budget: Budget) -> tuple[float, ...]:
    """Rises, portion by portion, with which a plan is not among the best of its size so far.

    A plan is compared with others on the text that both have seen, as portions differ more
    than good plans do.  The first portions foretell the whole only so well, as the whole pairs
    show, and near the end of a search all plans are alike: without room for that, chance would
    drop most of them.
    """
    best = space.best_pairs(pairs, budget, 2 * _HOPEFUL)
    if len(best) < 2 * _HOPEFUL:
        return ()
    courses = np.array([[rise for _, rise in pair.course] for pair in best])
    places = np.sort(courses[:, :-1], axis=0)[_HOPEFUL - 1]
    errors = (courses[:, :-1] - courses[:, -1:]).std(axis=0, ddof=1)
    return tuple((places + _ERRORS * errors).tolist())
