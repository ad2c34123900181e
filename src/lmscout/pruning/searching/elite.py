"""The best measured plans of one size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from lmscout.pruning.ledger import Pair
from lmscout.pruning.searching.budgets import Budget
from lmscout.pruning.searching.ranges import Ranges, meets
from lmscout.pruning.subnetworks.plan_arrays import Rows, as_rows


def best_pairs(pairs: Sequence[Pair], ranges: Ranges, budget: Budget, count: int) -> list[Pair]:
    """The best whole pairs that lie within ranges and meet a budget, best first.

    Pairs of equal value are in the order of their plans, not of their measuring.
    """
    return best_of(pairs, lambda rows: ranges.holds(rows) & meets(rows, budget), count)


def best_of(
    pairs: Sequence[Pair], fits: Callable[[Rows], npt.NDArray[np.bool_]], count: int
) -> list[Pair]:
    """The best whole pairs whose plans fit, best first; in the same order.

    Args:
        pairs: measured.
        fits: whether plans [n, 2L] do, [n].
        count: at most.
    """
    whole = [pair for pair in pairs if not pair.partial]
    if not whole:
        return []
    chosen = fits(as_rows([pair.plan for pair in whole]))
    found = [pair for pair, one in zip(whole, chosen, strict=True) if one]
    found.sort(key=lambda pair: (pair.value, pair.plan.attention, pair.plan.mlp))
    return found[:count]
