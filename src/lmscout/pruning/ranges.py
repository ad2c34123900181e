"""Ranges of units that each block may keep, and the best measured plans within them.

Ranges: the fewest and the most units that each block may keep, and fitting into them.

The best measured plans of one size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmscout.errors import LmscoutError
from lmscout.pruning.budgets import Budget
from lmscout.pruning.plan import Floats, Plan, Rows, Shape, as_plans, as_rows, dense_row
from lmscout.pruning.study import Pair

_HALVINGS = 26  # of the interval [-1, 1] in which the common shift is sought
_PLACES = 1 << _HALVINGS  # in it
# Trials of the shift that costs predict, and how many units beside it.
_GUESSES = dict(enumerate((-3.0, 3.0, -3.0, 3.0), start=1))
_ROUNDING = 1e-9  # of a cost: more than sums of floats are off by
_NEARLY = 0.999  # of a budget that need not be used up, as far as fitting goes


@dataclass(frozen=True)
class Ranges:
    """How many units each block may keep.

    Attributes:
        low: the fewest.
        high: the most.
    """

    low: Plan
    high: Plan

    def __post_init__(self) -> None:
        below, above = as_rows([self.low, self.high])
        if (below > above).any():
            raise LmscoutError("ranges: the fewest units of a block are above the most")

    @classmethod
    def above(cls, shape: Shape, least: float = 0.1) -> Ranges:
        """From a share of every block's units, rounded up, to all of them."""
        units = dense_row(shape)
        fewest = np.ceil(least * units - 1e-9).astype(np.int64)
        return cls(*as_plans(np.stack([fewest, units])))

    def protected(self, shape: Shape, share: int = 6) -> Ranges:
        """The same, but the first and the last `1 / share` of the blocks stay whole."""
        whole = np.tile(protected_blocks(shape.depth, share), 2)
        rows = np.where(whole, dense_row(shape), as_rows([self.low, self.high]))
        return Ranges(*as_plans(rows))

    def holds(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Whether plans [n, 2L] lie within, [n]."""
        low, high = as_rows([self.low, self.high])
        inside: npt.NDArray[np.bool_] = ((rows >= low) & (rows <= high)).all(axis=1)
        return inside

    def can_meet(self, budget: Budget) -> bool:
        """Whether some plan within meets the budget."""
        least, most = budget.cost(as_rows([self.low, self.high]))
        return bool(least <= budget.limit and (budget.slack is None or most >= _enough(budget)))

    def require(self, budget: Budget) -> None:
        """Refuse a budget that no plan within meets.

        Raises:
            LmscoutError: it names the nearest that can be met.
        """
        if self.can_meet(budget):
            return
        least, most = budget.cost(as_rows([self.low, self.high]))
        above = bool(least > budget.limit)
        nearest = budget.words(float(least if above else most), nearer=1 if above else -1)
        raise LmscoutError(
            f"no plan meets the budget of {budget.words(budget.limit)}: the nearest that can be "
            f"met is {nearest}"
        )


def protected_blocks(depth: int, share: int = 6) -> tuple[bool, ...]:
    """Which blocks are among the first or the last `1 / share`, rounded, one at least."""
    count = max(1, round(depth / share))
    return tuple(block < count or block >= depth - count for block in range(depth))


def uniform(shape: Shape, ranges: Ranges, budget: Budget) -> Plan:
    """The plan that keeps the same share of every block that ranges do not hold elsewhere."""
    units = dense_row(shape)
    low, high = as_rows([ranges.low, ranges.high])
    below, above = 0.0, 1.0
    for _ in range(_HALVINGS):
        share = (below + above) / 2
        rows = np.clip(np.rint(share * units), low, high).astype(np.int64)[None]
        enough = bool(budget.cost(rows)[0] <= budget.limit)
        below, above = (share, above) if enough else (below, share)
    return as_plans(fit((below * units)[None], ranges, budget))[0]


def meets(rows: Rows, budget: Budget) -> npt.NDArray[np.bool_]:
    """Whether plans [n, 2L] cost no more than a budget and, where that matters, no less."""
    costs = budget.cost(rows)
    within = costs <= budget.limit
    return within if budget.slack is None else within & (costs >= _enough(budget))


def fit(
    wanted: npt.NDArray[np.floating] | Rows, ranges: Ranges | tuple[Rows, Rows], budget: Budget
) -> Rows:
    """Plans near to wanted, fractional ones that lie within ranges and meet a budget.

    Groups are rounded with the error carried from block to block.  Channels then move by one
    common share of the room that they have, towards the most or the fewest, so far as the
    budget allows; they are rounded at staggered thresholds, so that they step one at a time.
    Where channels alone cannot meet the budget, groups move first, in the same way.

    Args:
        wanted: [n, 2L] units.
        ranges: for all plans, or (low, high) rows, [2L] or [n, 2L], for each.
        budget: one that the ranges can meet.

    Returns:
        [n, 2L]; every row costs at most the limit.  Under a budget of parameters one channel
        more would exceed it, unless there is none, and such a plan is its own fit.
    """
    low, high = as_rows([ranges.low, ranges.high]) if isinstance(ranges, Ranges) else ranges
    low, high = np.broadcast_to(low, wanted.shape), np.broadcast_to(high, wanted.shape)
    depth = wanted.shape[1] // 2
    near = np.clip(np.asarray(wanted, np.float64), low, high)
    near[:, :depth] = _carried(near[:, :depth], low[:, :depth], high[:, :depth])
    groups, channels = np.s_[:, :depth], np.s_[:, depth:]

    # Groups that leave channels no way to meet the budget are moved with channels at the
    # end of their range.
    for extreme, sign in ((low, -1.0), (high, 1.0)):
        ends = near.copy()
        ends[channels] = extreme[channels]
        costs = budget.cost(ends.astype(np.int64))
        stuck = costs > budget.limit if sign < 0 else costs < _enough(budget)
        if stuck.any():
            moved = _shifted(ends[stuck], low[stuck], high[stuck], groups, budget)
            if sign > 0:  # the step that passes the limit, where channels can give it back
                raised = _enough_groups(moved, high[stuck], depth, budget)
                least = np.where(np.arange(2 * depth) < depth, raised, low[stuck])
                moved = np.where((budget.cost(least) <= budget.limit)[:, None], raised, moved)
            near[stuck, :depth] = moved[groups]
    return _filled(_shifted(near, low, high, channels, budget), high, budget)


def _enough(budget: Budget) -> float:
    """What a plan has to cost for a budget to be used up."""
    return _NEARLY * budget.limit if budget.slack is None else budget.limit - budget.slack


def _carried(wanted: Floats, low: Rows, high: Rows) -> Floats:
    """Whole groups, the rounding error of a block carried on to the next."""
    whole = np.empty_like(wanted)
    carried = np.zeros(len(wanted))
    for block in range(wanted.shape[1]):
        due = wanted[:, block] + carried
        kept = np.minimum(np.maximum(np.rint(due), low[:, block]), high[:, block])
        whole[:, block] = kept
        carried = np.minimum(np.maximum(due - kept, -1.0), 1.0)
    return whole


def _shifted(
    near: Floats, low: Rows, high: Rows, columns: tuple[slice, slice], budget: Budget
) -> Rows:
    """Move columns by the largest common share of their room that the budget allows."""
    start = near[columns]
    down, up = start - low[columns], high[columns] - start
    count = start.shape[1]
    threshold = (np.arange(count) + 0.5) / count
    whole, least, most = near.astype(np.int64), low[columns], high[columns]

    def moved(some: Rows, place: Rows) -> Rows:
        """Rows of some plans, moved by a share that is a place among `_PLACES` from -1 to 1."""
        share = (place * (2.0 / _PLACES) - 1.0)[:, None]
        step = share * np.where(share > 0, up[some], down[some])
        rows: Rows = whole[some]
        rows[columns] = np.minimum(
            np.maximum(np.floor(start[some] + step + threshold + 1e-9), least[some]), most[some]
        )
        return rows

    # The last place that the budget allows, known as soon as one unit lies between those
    # known to be below it and above it.
    some = np.arange(len(near))
    below, above = np.zeros(len(near), np.int64), np.full(len(near), _PLACES)
    under, over = moved(some, below), moved(some, above)
    under_cost, over_cost = budget.cost(under), budget.cost(over)
    ends = over_cost <= budget.limit
    under[ends], below[ends] = over[ends], _PLACES
    for trial in range(_HALVINGS + 3):
        between = (over[some] - under[some]).sum(axis=1)
        open_ = (between > 1) & (above[some] - below[some] > 1)
        some, between = some[open_], between[open_]
        if not len(some):
            break
        first, width = below[some], above[some] - below[some]
        middle = first + width // 2
        if trial in _GUESSES:  # what a unit costs is alike, so costs tell nearly where
            part = (budget.limit - under_cost[some]) / (over_cost[some] - under_cost[some])
            guess = first + np.rint(width * (part + _GUESSES[trial] / between)).astype(np.int64)
            middle = np.clip(guess, first + 1, above[some] - 1)
        rows = moved(some, middle)
        costs = budget.cost(rows)
        fits = costs <= budget.limit
        lower, upper = some[fits], some[~fits]
        below[lower], under[lower], under_cost[lower] = middle[fits], rows[fits], costs[fits]
        above[upper], over[upper], over_cost[upper] = middle[~fits], rows[~fits], costs[~fits]
    return under


def _enough_groups(rows: Rows, high: Rows, depth: int, budget: Budget) -> Rows:
    """Groups added in the first blocks that have room, until the budget is used up."""
    raised = rows.copy()
    for block in range(depth):
        for _ in range(int((high - raised)[:, block].max(initial=0))):
            short = (budget.cost(raised) < _enough(budget)) & (raised < high)[:, block]
            if not short.any():
                break
            raised[short, block] += 1
    return raised


def _filled(rows: Rows, high: Rows, budget: Budget) -> Rows:
    """A channel more here and there, where steps that fell together left room for one."""
    filled = rows.copy()
    depth = rows.shape[1] // 2
    costs = budget.cost(rows)
    room = (budget.limit - costs + _ROUNDING * np.abs(costs))[:, None]
    may = (rows < high)[:, depth:] & (budget.least_steps()[depth:] <= room)
    for column in np.flatnonzero(may.any(axis=0)):
        some = np.flatnonzero(may[:, column])
        more = filled[some]
        more[:, depth + column] += 1
        fits = budget.cost(more) <= budget.limit
        filled[some[fits]] = more[fits]
    return filled


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
