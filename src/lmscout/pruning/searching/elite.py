"""The best measured plans of one size."""

from __future__ import annotations

from collections.abc import Sequence

from lmscout.pruning.budgets import Budget
from lmscout.pruning.ledger import Pair
from lmscout.pruning.plan_arrays import as_rows
from lmscout.pruning.ranges import Ranges, meets


def best_pairs(pairs: Sequence[Pair], ranges: Ranges, budget: Budget, count: int) -> list[Pair]:
    """The best whole pairs that lie within ranges and meet a budget, best first.

    Pairs of equal value are in the order of their plans, not of their measuring.
    """
    whole = [pair for pair in pairs if not pair.partial]
    if not whole:
        return []
    rows = as_rows([pair.plan for pair in whole])
    fits = ranges.holds(rows) & meets(rows, budget)
    found = [pair for pair, one in zip(whole, fits, strict=True) if one]
    found.sort(key=lambda pair: (pair.value, pair.plan.attention, pair.plan.mlp))
    return found[:count]
