"""Allocation: the plan of the least estimated loss increase under a budget, without measuring."""

from __future__ import annotations

import numpy as np

from lmscout.pruning.features import ImportanceMass
from lmscout.pruning.plan import Plan, Rows, as_plans
from lmscout.pruning.ranges import Target, fit
from lmscout.pruning.search import rank_uniform
from lmscout.pruning.space import PlanSpace

_BISECTIONS = 60
_MULTIPLIERS = (-60.0, 60.0)  # logarithms, in nats/token per unit of cost


def allocate(space: PlanSpace, target: Target, mass: ImportanceMass) -> Plan:
    """The plan whose removed units have the least summed mass.

    Where blocks vary, it minimises the mass plus a multiplier times the cost, which is a choice of
    each column alone.  One bisection finds the least multiplier with which the cost is within the
    budget; what is left goes to channels.  Of uniform plans, the best is listed.

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
    columns = []
    for column, (error, cost) in enumerate(zip(mass.columns, inner.budget.tables, strict=True)):
        steps = np.arange(low[column], high[column] + 1)
        units = np.minimum(steps * space.each[column], len(error) - 1)
        columns.append((error[units], cost[steps]))

    def best(log_multiplier: float) -> Rows:
        multiplier = np.exp(log_multiplier)
        steps = [int(np.argmin(error + multiplier * cost)) for error, cost in columns]
        return np.asarray(low + steps)

    below, above = _MULTIPLIERS
    for _ in range(_BISECTIONS):
        middle = (below + above) / 2
        if inner.budget.cost(best(middle)[None])[0] > inner.budget.limit:
            below = middle
        else:
            above = middle
    rows = fit(best(above)[None], inner.ranges, inner.budget)
    return as_plans(space.to_units(rows))[0]
