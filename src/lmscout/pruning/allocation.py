"""Allocation: the plan of the least estimated loss increase under a budget, without measuring."""

from __future__ import annotations

import numpy as np
from sklearn.isotonic import isotonic_regression

from lmscout.pruning.features import ImportanceMass
from lmscout.pruning.plan import Plan, as_plans
from lmscout.pruning.ranges import Target, fit
from lmscout.pruning.search import rank_uniform
from lmscout.pruning.space import PlanSpace

_FREE = 1e-300  # cost of a unit that a measured table gives none


def allocate(space: PlanSpace, target: Target, mass: ImportanceMass) -> Plan:
    """The plan whose removed units have the least summed mass.

    Where blocks vary, units are taken by the mass that they save per cost, the most first, until
    the budget is used up: the plan of the least mass plus a multiplier times the cost.  What is
    left goes to channels.  Uniform plans are ranked by their masses.

    Args:
        space: of plans.
        target: the budget, and the ranges of blocks that vary.
        mass: of removed units, in one unit for all blocks.

    Raises:
        LmscoutError: no plan meets the target.
    """
    if space.uniform is not None:
        plans = space.plans(target.budget)
        rng = np.random.default_rng(0)
        rows, _ = rank_uniform(plans, plans.projected(()), mass.estimate, rng)
        return as_plans(rows[:1])[0]
    inner = space.in_steps(target)
    inner.ranges.require(inner.budget)
    low, high = inner.ranges.rows
    saved, costs = [], []
    for column, (error, table) in enumerate(zip(mass.columns, inner.budget.tables, strict=True)):
        steps = np.arange(low[column], high[column] + 1)
        units = np.minimum(steps * space.each[column], len(error) - 1)
        cost = np.maximum(np.diff(np.maximum.accumulate(table)[steps]), _FREE)
        costs.append(cost)
        # Lower convex hull: a unit that saves less than the next one is taken with it.
        each = -np.diff(error[units]) / cost
        saved.append(isotonic_regression(each, sample_weight=cost, increasing=False))
    columns = np.repeat(np.arange(len(low)), high - low)
    order = np.argsort(-np.concatenate(saved), kind="stable")
    room = inner.budget.limit - inner.budget.cost(low[None])[0]
    taken = order[np.cumsum(np.concatenate(costs)[order]) <= room]
    row = low + np.bincount(columns[taken], minlength=len(low))
    rows = np.concatenate([fit(row[None], inner.ranges, inner.budget), row[None]])
    rows = space.to_units(rows[: 1 + int(inner.budget.meets(row[None])[0])])
    return as_plans(rows[[np.argmin(mass.estimate(rows))]])[0]
